"""Where each run stands: the table of moves and its store."""
