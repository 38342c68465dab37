"""Other packages' programming interfaces, served by tvm_na: :mod:`tvm_na.compat.natten`."""
