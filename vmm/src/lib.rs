//! The control plane: configuration, the machine thread, lifecycle.
