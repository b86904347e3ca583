"""`twn inspect`: a page on this machine that shows a run's decisions and answers questions with the run's model."""
