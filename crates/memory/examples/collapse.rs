//! Puts a guest's memory back into huge pages by hand, for measuring: `collapse PID RAM_MIB`.

use std::sync::atomic::AtomicBool;

use keyframe_memory::collapse::{CollapseOptions, collapse_huge_pages};
use keyframe_vmstate::PageCount;
use rustix::process::Pid;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [pid, mib] = args.as_slice() else {
        return Err("usage: collapse PID RAM_MIB".into());
    };
    let pid = Pid::from_raw(pid.parse()?).ok_or("no such process")?;
    let ram = PageCount::from_bytes(mib.parse::<u64>()? << 20).ok_or("too much")?;
    let never = AtomicBool::new(false);
    let report = collapse_huge_pages(pid, ram, &CollapseOptions::default(), &never)?;
    println!("{report:?}");
    Ok(())
}
