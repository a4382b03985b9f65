"""Pages and pictures for people: the report of a run, and its picture strip."""
