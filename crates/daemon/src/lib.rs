//! `keyframe serve`: gives every machine what it is owed, proves it, and shows it.
//!
//! | module | what |
//! |---|---|
//! | [`job`] | one thing that is done for one machine |
//! | [`catalog`], [`records`] | what is remembered of jobs: quickly, and for certain |
//! | [`fleet`] | the machines, looked at from the side |
//! | [`hands`] | processes that run commands and outlive the daemon |
//! | [`commands`] | what a job is on the command line |
//! | [`outcome`] | what follows from how a command ended |
//! | [`scheduler`] | what is due, what may be at work at once |
//! | [`verdict`] | whether a machine has what it is owed, and why not |
//! | [`alerts`] | what is to be seen to, since when |
//! | [`rules`] | the policies that count, whatever is in the files |
//! | [`space`], [`places`] | how much room there is, and for how long |
//! | [`service`] | the one thread that decides |
//! | [`view`] | what is shown |
//! | [`server`], [`activation`], [`tls`], [`access`] | who connects, how, and what they may |
//! | [`api`] | REST, metrics, the dashboard |
//! | [`deeds`] | what may be asked for, and what it is on the command line |
//! | [`approvals`] | what waits for a second person's yes |
//! | [`event`] | what happens, for whoever is to be told |
//! | [`notify`] | telling them: pings, requests, letters |
//! | [`report`] | what was promised and what was measured, for an auditor |
//! | [`audit`] | who did what, in a log that cannot be changed unseen |
//!
//! The daemon changes nothing itself. Each thing that is done is a command that a person could have typed, in a process of its own:
//! the command line works the same with and without it, and what it is in the middle of when it is killed goes on.

pub mod access;
pub mod activation;
pub mod alerts;
pub mod api;
pub mod approvals;
pub mod audit;
mod ballast;
pub mod catalog;
pub mod commands;
pub mod deeds;
mod error;
pub mod event;
pub mod fleet;
pub mod hands;
pub mod job;
pub mod notify;
pub mod outcome;
pub mod places;
mod recall;
pub mod records;
pub mod report;
pub mod rules;
mod run;
pub mod scheduler;
pub mod server;
pub mod service;
mod share;
pub mod space;
mod supervision;
pub mod tls;
mod unnoted;
pub mod verdict;
pub mod view;

pub use error::Error;
pub use run::{Doors, serve};
