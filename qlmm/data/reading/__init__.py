"""Files and Hub data sets -> rows -> samples, with every problem found on the way."""
