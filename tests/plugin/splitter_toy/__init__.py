"""What another package adds to splitter. It imports splitter; nothing in splitter imports or names it."""
