"""From the scores of a run to what can be said of them.

scores      columns that line up, under the roles of the adapters
quantities  what is computed from them, on which prompts
ranges      what each metric can tell of each adapter
joining     the scores of several concepts as one
findings    every quantity of every variant
contrasts   each two variants, image by image
"""
