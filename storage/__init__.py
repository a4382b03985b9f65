"""Where things are kept: objects in S3 or a folder, the layout of a run, exports."""
