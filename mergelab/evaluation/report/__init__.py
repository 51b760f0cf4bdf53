"""The findings for people.

labels    method and options of a merge; the shortest names that tell merges apart
numbers   numbers as people read them
raw       the primary score where it is no share
lookup    what everything below asks a result: names, scores and their contrasts, who is ranked where
choices   how options were chosen, in words
limits    what cannot be said, in sentences
verdict   the findings in sentences
columns   what tables show, in groups of prompts
tables    the findings as a plain table
cells     the findings as rows of the page
matrix    each variant against each, and the difference in every set (forest draws it)
plots     figures as SVG; figures: which of them the page has
pictures  the images of the grid; strengths: of merges that differ in weights alone
page      report.html, from all of these and templates
"""
