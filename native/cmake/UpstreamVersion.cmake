# The one upstream release we build on. Moving to another one: CONTRIBUTING.md, "A new upstream version".

set(MINICACHE_UPSTREAM_VERSION "0.3.36")  # of llama-cpp-python, whose source distribution carries llama.cpp
set(MINICACHE_UPSTREAM_SHA256  "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e")
set(MINICACHE_UPSTREAM_COMMIT  "0c1e570") # of llama.cpp
