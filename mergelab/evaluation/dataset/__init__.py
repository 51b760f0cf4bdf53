"""A run as a dataset on the Hugging Face Hub.

staging   its files as they will lie there: scores, images with their prompts, report
card      README.md
pushing   `push_run`
"""
