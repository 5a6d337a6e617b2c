"""The relay's image on a real one-node Kubernetes, run by `make e2e-kube`. Not in `make test`: it takes minutes."""
