//! What makes a machine an x86_64 one: memory layout, CPU setup, boot protocols, firmware tables.
