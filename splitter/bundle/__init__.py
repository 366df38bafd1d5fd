"""The directory a build writes and everything else reads: manifest, files, goldens."""
