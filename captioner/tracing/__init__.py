"""What a model computed for each word: traces, and edits of the values on the way."""
