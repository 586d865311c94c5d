"""Work shared out: to the devices of one machine, or to a cluster's; this package knows nothing of search."""
