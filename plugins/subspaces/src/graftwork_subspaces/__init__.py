"""Learning compressible subspaces: one network, any compression level at run time."""
