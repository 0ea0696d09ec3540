//! Work that lets guests go first.
//!
//! A guest's vCPUs and disks share the host's processors with whoever reads, hashes, compresses and encrypts what is stored of it.
//! That work can wait, and is done in threads of little priority. What a guest waits for never is: cutting, freezing and
//! thawing, watching over it, bringing it what it reads.

/// Of two threads that want one processor, one as nice as this gets a seventieth when the other is a vCPU of usual priority. The kernel
/// takes the priority of disk requests from it, too. Source: sched(7), ioprio_set(2).
const NICENESS: i32 = 19;

/// Does something in a thread that lets others go first, as do the threads that it starts; the calling thread stays as it is, and waits.
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|threads| {
        let thread = threads.spawn(|| {
            step_back();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Lets the calling thread, and those that it starts from now on, take less of the processors than others.
fn step_back() {
    // On Linux this is the thread's own; an unprivileged one cannot go back. One that is nicer already stays so.
    let niceness = rustix::process::getpriority_process(None).map_or(NICENESS, |now| now.max(NICENESS));
    // A kernel that refuses leaves the thread as it is, which is right, only less gentle.
    let _ = rustix::process::setpriority_process(None, niceness);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the calling thread, as the kernel tells.
    fn niceness() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name before it may hold anything. Source: proc_pid_stat(5), field 19.
        let fields = stat.rsplit(") ").next().unwrap();
        fields.split(' ').nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn work_aside_is_nice_with_all_its_threads_and_nobody_else_is() {
        let before = niceness();
        let (own, started) = aside(|| (niceness(), std::thread::spawn(niceness).join().unwrap()));
        assert_eq!((own, started), (NICENESS.max(before), NICENESS.max(before)));
        assert_eq!(niceness(), before);
        assert_eq!(std::thread::spawn(niceness).join().unwrap(), before);
    }

    #[test]
    fn a_panic_comes_through() {
        let caught = std::panic::catch_unwind(|| aside(|| panic!("a fault")));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"a fault"));
    }
}
