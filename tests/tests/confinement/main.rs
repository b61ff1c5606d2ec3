//! Confinement: the locks of each process, compromised processes, and steps of the start that fail.

mod confinement;
mod explain;
mod explain_kernels;
mod hostile_broker;
mod hostile_worker;
mod injected_failures;
mod limits;
mod old_kernels;
mod security_document;
mod starter;
mod startup_errors;
mod user_namespace;
mod worker_limits;
