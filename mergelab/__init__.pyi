# Every public name, once: type checkers read this file, and so does __init__.py.
from . import miniature as miniature
from .adapter import Adapter as Adapter
from .adapter import load as load
from .comparing import Comparison as Comparison
from .comparing import compare as compare
from .errors import ArchitectureError as ArchitectureError
from .errors import FormatError as FormatError
from .errors import LayerError as LayerError
from .errors import MergelabError as MergelabError
from .errors import OptionError as OptionError
from .errors import OutputError as OutputError
from .errors import SourceError as SourceError
from .evaluation import evaluate as evaluate
from .evaluation import register_metric as register_metric
from .layer import LoraLayer as LoraLayer
from .merging import merge as merge
from .ranks import RankBudget as RankBudget
from .report import Report as Report
from .strategies import Cat as Cat
from .strategies import Dare as Dare
from .strategies import DareTies as DareTies
from .strategies import Linear as Linear
from .strategies import MagnitudePrune as MagnitudePrune
from .strategies import Strategy as Strategy
from .strategies import Svd as Svd
from .strategies import Ties as Ties
from .strategies import register as register

__version__: str
register_method = register
