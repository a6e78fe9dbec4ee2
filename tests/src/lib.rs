//! What tests of whole machines share: finding the programs, running a monitor, talking to its guest.
