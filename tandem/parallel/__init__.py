"""Several devices and hosts in one job: the mesh, the one table of shardings, and how hosts come together."""
