//! Giving up every right: what is left is memory up to a bound, reading from and writing to what is open, and ending.
//!
//! No file can be opened, no program started, no connection made: those system calls end the process. That covers what
//! Landlock would, on kernels without it, too.

use std::collections::BTreeMap;
use std::io;

use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Address space: a directory of a million names, and all caches.
const MEMORY_MOST: u64 = 1 << 30;
/// Processor time: a whole disk's files may be copied by one reader; a single question has a shorter bound, its command's.
const CPU_SECONDS_MOST: u64 = 24 * 3600;

/// System calls that stay: for reading and writing, memory, locks within the process, its own signals, the clock, its end.
const CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// These, too, unless the memory is to be executed: by their third argument.
const NOT_TO_EXECUTE: &[i64] = &[libc::SYS_mmap, libc::SYS_mprotect];

/// Locks this process in, for good.
pub(super) fn enter() -> io::Result<()> {
    // SAFETY: `close_range` takes three numbers. Nobody in this process uses what is open behind the standard streams: it was
    // started for this alone, and what follows opens nothing.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Should the command be killed, nobody waits for an answer any more.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let limit = |most| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::As, limit(MEMORY_MOST))?;
    setrlimit(Resource::Cpu, limit(CPU_SECONDS_MOST))?;
    setrlimit(Resource::Core, limit(0))?;
    setrlimit(Resource::Fsize, limit(0))?;
    rustix::thread::set_no_new_privs(true)?;
    let filter: seccompiler::BpfProgram = filter().and_then(TryInto::try_into).map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter).map_err(io::Error::other)
}

fn filter() -> Result<SeccompFilter, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let execute = libc::PROT_EXEC as u64;
    for call in NOT_TO_EXECUTE {
        let no = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(execute), 0)?;
        rules.insert(*call, vec![SeccompRule::new(vec![no])?]);
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)
}
