"""The methods, one file each (a folder where one file will not do), found by file name."""
