"""Everything on one machine: embedded servers, the local model, and the processes under a runner that restarts them."""
