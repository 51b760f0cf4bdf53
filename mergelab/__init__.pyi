# Every public name, once: type checkers read this file, and so does __init__.py.
from . import miniature as miniature
from .adapter import Adapter as Adapter
from .adapter import load as load
from .comparing import Comparison as Comparison
from .comparing import compare as compare
from .diagnosing import Diagnosis as Diagnosis
from .diagnosing import Finding as Finding
from .diagnosing import doctor as doctor
from .engine.block_weights import BlockWeights as BlockWeights
from .engine.block_weights import block_weights as block_weights
from .engine.checkpoint import FusedCheckpoint as FusedCheckpoint
from .engine.checkpoint import fuse_checkpoint as fuse_checkpoint
from .engine.composing import compose as compose
from .engine.extracting import extract as extract
from .engine.merge import merge as merge
from .engine.merge import merge_many as merge_many
from .errors import ArchitectureError as ArchitectureError
from .errors import FormatError as FormatError
from .errors import LayerError as LayerError
from .errors import MergelabError as MergelabError
from .errors import OptionError as OptionError
from .errors import OutputError as OutputError
from .errors import SourceError as SourceError
from .evaluation import evaluate as evaluate
from .evaluation import register_metric as register_metric
from .formats.aitoolkit import GenerateConfig as GenerateConfig
from .formats.aitoolkit import generate_config as generate_config
from .layer import LoraLayer as LoraLayer
from .methods.dare import Dare as Dare
from .methods.dare import DareTies as DareTies
from .methods.linear import Cat as Cat
from .methods.linear import Linear as Linear
from .methods.linear import Svd as Svd
from .methods.magnitude_prune import MagnitudePrune as MagnitudePrune
from .methods.method import EntryWise as EntryWise
from .methods.method import LayerWise as LayerWise
from .methods.method import MatrixWise as MatrixWise
from .methods.method import Strategy as Strategy
from .methods.registry import register as register
from .methods.ties import Ties as Ties
from .pipelines.applying import apply as apply
from .pipelines.applying import remove as remove
from .pipelines.combinations.composite import Composite as Composite
from .pipelines.combinations.klora import KLora as KLora
from .pipelines.combinations.schedule import Schedule as Schedule
from .pipelines.combinations.switch import Switch as Switch
from .pipelines.fusing import Fused as Fused
from .pipelines.fusing import fuse as fuse
from .pipelines.fusing import fused as fused
from .pipelines.fusing import unfuse as unfuse
from .publishing import Pushed as Pushed
from .ranks import RankBudget as RankBudget
from .ranks import SvCumulative as SvCumulative
from .ranks import SvFro as SvFro
from .ranks import SvRatio as SvRatio
from .report import Report as Report
from .tuning import Tuned as Tuned
from .tuning import tune as tune

__version__: str
register_method = register
switch = Switch
composite = Composite
klora = KLora
schedule = Schedule
