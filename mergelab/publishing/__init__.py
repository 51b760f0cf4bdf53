"""An adapter on the Hugging Face Hub, with a model card.

From the bottom up:

    base_models, recipe, usage   what is known of an adapter: its base model, how it was made, how it is used
    exhibits                     what an evaluation showed of it
    front_matter                 its metadata, edited as text
    card                         all of that as README.md, beside what its owner wrote
    staging                      the files, as they will lie in the repository
    hub                          the repository: who may write, what is there, one commit
    pushing                      files that are made here, into a repository or a folder
    publishable                  `push_to_hub`
"""

from mergelab.publishing.hub import Pushed
from mergelab.publishing.publishable import Publishable

__all__ = ["Publishable", "Pushed"]
