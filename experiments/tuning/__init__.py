"""Does `search: blocks` beat the plain sum on what it has not seen? See the README beside this file."""
