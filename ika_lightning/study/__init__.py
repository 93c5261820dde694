"""Studies: which variant pays on this data, by equal tuning, repeats, and statistics that say how sure it is."""
