//! What machines are owed, and when: policies as files, calendars, what is due, what will exist.
//!
//! Nothing here runs, writes or knows QEMU; the clock is a parameter. `load` turns files into [`Policies`] or into every mistake in
//! them; [`Policies::for_machine`] says what one machine is [`Owed`]; [`Due`] says whether something is to be done now;
//! [`Plan`] plays it forward.
//!
//! | | |
//! |---|---|
//! | [`calendar`] | systemd's calendar expressions and cron's five fields; time zones and daylight saving time |
//! | [`policy`] | the types of a policy, a group, a host's settings, notifications |
//! | [`window`] | times of the week in which something may be done, or may not |
//! | [`load`] | from files to [`Policies`], with every mistake's place and remedy |
//! | [`due`] | run now, or when; what was missed |
//! | [`plan`] | a simulation of the days to come |

pub mod calendar;
pub mod due;
pub mod load;
pub mod owed;
pub mod plan;
pub mod policy;
mod review;
pub mod select;
pub mod window;

pub use calendar::{CalendarError, Schedule, zone_name};
pub use due::{Due, Timetable};
pub use load::{Loaded, Mistake, Place, Severity, default_directory, load};
pub use owed::{Owed, Policies};
pub use plan::{Day, Event, Plan, What};
pub use policy::{
    ApprovalRule, AskedFor, AskedForError, BackupPolicy, Consistency, Deadlines, DrillPolicy, DrillTarget, EventKind,
    EventKindError, Group, Healthchecks, Host, Keep, Limits, Mail, Notify, Objectives, Policy, PolicyName,
    SnapshotPolicy, Webhook,
};
pub use select::{Glob, Machine, Selector, Tag};
pub use window::{Window, Windows};
