//! What each process may do: the locks, what is left to a process that was taken over, and steps of the start that fail.

mod confinement;
mod explain;
mod failures;
mod hostile_broker;
mod hostile_worker;
mod kernels;
mod lesser_kernels;
mod limits;
mod security_document;
mod startup_errors;
