"""A loaded diffusers pipeline: opened, told apart, given adapters, asked for an image.

    opening       a pipeline from a name or a folder, on its device, with what spares memory; what it says of itself
    schedulers    another scheduler for a pipeline, by the name of its class
    fusing        adapters added to the weights, and taken back bit for bit
    places        the tensor that each change is for, which can be changed in place, or is refused
    originals     the weights as they were, and what is fused into them
    keeping       where the weights as they were are kept
    applying      adapters made active unmerged, and taken away without a trace
    live          the PEFT layers in a model that this is done with
    combinations  adapters combined while an image is made
    adapters      whether adapters fit; where the module of a canonical name is
    staging       one set of adapters after another, and none left at the end
    encoding      prompts encoded once
    images        images from seeds
    fingerprints  hashes of a pipeline, a model, an adapter

Nothing here knows of an evaluation: every function takes the pipeline and plain arguments.
"""
