"""Studies: several configurations, each trained with several seeds, compared on held-out hosts (docs/studies.md).

Whatever is finished stays: trainings are run directories, which go on from their latest checkpoint, and every
policy's episodes are a file. A study that is started again does only what is missing.
"""
