//! The process that holds a large file while its name goes.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn the_holder_stays_until_the_name_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer.qcow2");
    std::fs::write(&path, b"data").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyframe"));
    command.arg("internal-release").stdin(File::open(&path).unwrap()).stdout(Stdio::null());
    let mut holder = command.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(holder.try_wait().unwrap().is_none(), "the file still has its name");
    std::fs::remove_file(&path).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(status) = holder.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        assert!(Instant::now() < deadline, "nobody gives the space back");
        std::thread::sleep(Duration::from_millis(5));
    }
}
