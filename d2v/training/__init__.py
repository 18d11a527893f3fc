"""Runs: the job, the model it starts from, the loop and its parts, what a run says and leaves."""
