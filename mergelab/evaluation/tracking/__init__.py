"""A finished run, told to trackers of experiments.

tracker     what a tracker is to a run: started, told, ended
tensorboard, mlflow, wandb, trackio   one file for each
registry    the table of them, by the names that `log_with` has
record      what is told: configuration, numbers, tables, pictures, files
telling     the record, told to each of them
"""
