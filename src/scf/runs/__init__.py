"""Where does each run stand? States, moves, and the database that remembers them."""
