"""Sources of tables: columns of images, signals, words and numbers."""
