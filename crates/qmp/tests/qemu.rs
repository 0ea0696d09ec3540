//! Against a real QEMU without a guest: `-S`, no disk, no network. Fails where QEMU is missing.

mod common;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::Qemu;
use keyframe_qmp::commands::block::{
    BlockCommit, BlockdevAdd, BlockdevDel, NodeBacking, QueryBlock, QueryBlockstats, QueryNamedBlockNodes, Snapshot,
    StatsOf, Transaction,
};
use keyframe_qmp::commands::device::SetLink;
use keyframe_qmp::commands::job::{BlockJobComplete, JobDismiss, JobStatus, QueryBlockJobs, QueryJobs};
use keyframe_qmp::commands::machine::{
    AddFd, Cont, GetFd, HumanMonitorCommand, QueryCpusFast, QueryMemdev, QueryStatus, QueryVersion,
    QueryVmGenerationId, Quit, RemoveFd, RunState, Stop,
};
use keyframe_qmp::commands::migration::{
    Capability, Migrate, MigrateIncoming, MigrateRecover, MigrateSetCapabilities, MigrateSetParameters,
    MigrationAddress, MigrationStatus, MigrationUri, QueryMigrate, QueryMigrateCapabilities,
};
use keyframe_qmp::ids::{DeviceId, FdName, JobId, NodeName};
use keyframe_qmp::{Error, ErrorClass, EventKind, Incoming};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn greeting_and_negotiation() {
    let qemu = Qemu::start(&[]);
    let mut qmp = qemu.connect();
    let greeted = qmp.version().unwrap().clone();
    assert!(greeted.qemu.major >= 9, "{greeted:?}");
    assert_eq!(qmp.call(&QueryVersion {}).unwrap(), greeted);
    assert!(qmp.has_oob());
}

#[test]
fn stop_and_cont_are_events_before_their_replies() {
    let qemu = Qemu::start(&[]);
    let mut qmp = qemu.connect();
    assert_eq!(qmp.call(&QueryStatus {}).unwrap().status, RunState::Prelaunch);
    let before = Instant::now();
    let id = qmp.start(&Cont {}).unwrap();
    let Some(Incoming::Event(resumed)) = qmp.next_incoming(soon()).unwrap() else { panic!("no event") };
    assert_eq!(resumed.event.kind, EventKind::Resume);
    assert!(resumed.at > before && resumed.event.timestamp.is_some());
    let Some(Incoming::Reply(reply)) = qmp.next_incoming(soon()).unwrap() else { panic!("no reply") };
    assert_eq!((reply.id, reply.command.as_str()), (id, "cont"));
    qmp.call(&Stop {}).unwrap();
    // The reply was waited for; the event that came before it is still there.
    assert!(qmp.wait_event(|e| e.kind == EventKind::Stop, Instant::now()).unwrap().is_some());
    assert!(!qmp.call(&QueryStatus {}).unwrap().running);
}

#[test]
fn refusals_have_their_class() {
    let qemu = Qemu::start(&[]);
    let mut qmp = qemu.connect();
    let error = qmp.execute("no-such-command", &()).unwrap_err();
    assert_eq!(error.class(), Some(&ErrorClass::CommandNotFound));
    assert!(error.is_refusal() && !error.is_fatal(), "{error}");
    let link = SetLink::new(DeviceId::new("net0").unwrap(), keyframe_qmp::commands::device::Link::Down);
    assert_eq!(qmp.call(&link).unwrap_err().class(), Some(&ErrorClass::DeviceNotFound));
    assert_eq!(qmp.call(&QueryVmGenerationId {}).unwrap_err().class(), Some(&ErrorClass::Generic));
    qmp.call(&QueryStatus {}).unwrap();
}

#[test]
fn out_of_band_commands_run() {
    let qemu = Qemu::start(&[]);
    let mut qmp = qemu.connect();
    let recover = MigrateRecover { uri: MigrationUri::new("unix:/nowhere").unwrap() };
    let error = qmp.call(&recover).unwrap_err();
    assert!(error.is_refusal(), "{error}");
    let error = qmp.exec_oob("query-status", &()).unwrap_err();
    assert!(error.to_string().contains("does not support OOB"), "{error}");
}

#[test]
fn file_descriptors_arrive() {
    let qemu = Qemu::start(&[]);
    let mut qmp = qemu.connect();
    let mut written = tempfile::NamedTempFile::new().unwrap();
    written.write_all(&[7; 4096]).unwrap();
    let file = std::fs::File::open(written.path()).unwrap();
    let added = qmp.call_with_fd(&AddFd::default(), file.as_fd()).unwrap();
    let node = NodeName::new("passed").unwrap();
    let add = BlockdevAdd::new(serde_json::Map::new())
        .with("driver", "file")
        .with("node-name", node.as_str())
        .with("filename", added.fdset.path())
        .with("read-only", true);
    qmp.call(&add).unwrap();
    let nodes = qmp.call(&QueryNamedBlockNodes::flat()).unwrap();
    assert!(nodes.iter().any(|n| n.node_name.as_ref() == Some(&node) && n.read_only), "{nodes:?}");
    qmp.call(&RemoveFd { fdset: added.fdset }).unwrap();
    let name = FdName::new("mig").unwrap();
    let get = GetFd { fdname: name };
    assert!(qmp.call(&get).unwrap_err().is_refusal(), "no descriptor was sent");
    qmp.call_with_fd(&get, file.as_fd()).unwrap();
}

#[test]
fn a_migration_into_a_passed_descriptor_reports_each_status() {
    let qemu = Qemu::start(&[]);
    let mut qmp = qemu.connect();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let name = FdName::new("mig").unwrap();
    qmp.call_with_fd(&GetFd { fdname: name.clone() }, theirs.as_fd()).unwrap();
    drop(theirs);
    qmp.call(&MigrateSetCapabilities::on([Capability::Events])).unwrap();
    let states = qmp.call(&QueryMigrateCapabilities {}).unwrap();
    assert!(states.iter().any(|s| s.capability == Capability::Events && s.state));
    qmp.call(&MigrateSetParameters { max_bandwidth_bytes_per_s: Some(0), ..Default::default() }).unwrap();
    assert_eq!(qmp.call(&QueryMigrate {}).unwrap().status, None);
    let reader = std::thread::spawn(move || {
        let mut stream = Vec::new();
        (&ours).read_to_end(&mut stream).unwrap();
        stream
    });
    qmp.call(&Migrate::to(MigrationAddress::Fd { name })).unwrap();
    let mut seen = Vec::new();
    while !seen.iter().any(MigrationStatus::is_final) {
        let event = qmp.wait_event(|e| e.kind == EventKind::Migration, soon()).unwrap().expect("no event");
        seen.push(MigrationStatus::from(event.event.text("status").unwrap()));
    }
    assert_eq!((seen.first(), seen.last()), (Some(&MigrationStatus::Setup), Some(&MigrationStatus::Completed)));
    let info = qmp.call(&QueryMigrate {}).unwrap();
    assert!(info.is_armed() && info.ram.unwrap().total_bytes >= 32 << 20);
    assert_eq!(reader.join().unwrap().get(..4), Some(&b"QEVM"[..]));
}

#[test]
fn queries_read_into_their_types() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("d0.raw");
    std::fs::write(&image, [0; 65536]).unwrap();
    let drive = format!("driver=file,node-name=d0,filename={}", image.display());
    let qemu = Qemu::start(&["-blockdev", &drive, "-device", "virtio-blk-pci,drive=d0,id=vd0", "-smp", "2"]);
    let mut qmp = qemu.connect();
    assert_eq!(qmp.call(&QueryCpusFast {}).unwrap().len(), 2);
    let devices = qmp.call(&QueryBlockstats::of(StatsOf::Devices)).unwrap();
    assert!(devices.iter().any(|d| d.node_name.as_ref().is_some_and(|n| n.as_str() == "d0")), "{devices:?}");
    assert!(devices.iter().all(|d| d.stats.wr_operations == 0 && d.stats.idle_time_ns.is_none()));
    assert!(!qmp.call(&QueryBlockstats::of(StatsOf::Nodes)).unwrap().is_empty());
    assert_eq!(qmp.call(&QueryJobs {}).unwrap(), []);
    assert_eq!(qmp.call(&QueryBlockJobs {}).unwrap(), []);
    assert!(qmp.call(&QueryMemdev {}).is_ok());
    let text = qmp.call(&HumanMonitorCommand { command_line: "info version".into() }).unwrap();
    assert!(text.contains(&qmp.version().unwrap().qemu.to_string()), "{text}");
}

#[test]
fn a_missing_image_is_a_refusal_that_names_it() {
    let qemu = Qemu::start(&[]);
    let mut qmp = qemu.connect();
    let node = NodeName::new("d0").unwrap();
    let error = qmp.call(&BlockdevAdd::qcow2(&node, "/nowhere/d0.qcow2", &NodeBacking::Detached)).unwrap_err();
    assert!(error.to_string().contains("/nowhere/d0.qcow2"), "{error}");
}

#[test]
fn a_second_client_is_told_why_it_waits() {
    let qemu = Qemu::start(&[]);
    let _first = qemu.connect();
    let error = qemu.try_connect(Duration::from_millis(200)).unwrap_err();
    assert!(matches!(error, Error::NoGreeting { .. }), "{error}");
}

#[test]
fn the_end_of_qemu_is_seen_after_its_last_event() {
    let qemu = Qemu::start(&[]);
    let mut qmp = qemu.connect();
    let id = qmp.start(&Quit {}).unwrap();
    assert!(qmp.wait_reply(id, soon()).unwrap().unwrap().result.is_ok());
    assert!(qmp.wait_event(|e| e.kind == EventKind::Shutdown, soon()).unwrap().is_some());
    let error = qmp.next_incoming(soon()).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    assert!(matches!(qmp.call(&QueryStatus {}), Err(Error::Disconnected { .. })));
}

/// `qemu-img`, in this directory.
fn qemu_img(dir: &std::path::Path, args: &[&str]) {
    let run = std::process::Command::new("qemu-img").args(args).current_dir(dir).status();
    assert!(run.expect("qemu-img must be installed for this test").success(), "qemu-img {args:?}");
}

#[test]
fn disks_are_cut_and_merged_again() {
    let dir = tempfile::tempdir().unwrap();
    qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "base", "16M"]);
    qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "over"]);
    let file = |name: &str| dir.path().join(name).display().to_string();
    let drive = format!("driver=qcow2,node-name=d0,file.driver=file,file.filename={}", file("base"));
    let qemu = Qemu::start(&["-blockdev", &drive, "-device", "virtio-blk-pci,drive=d0,id=vd0"]);
    let mut qmp = qemu.connect();
    let (d0, d1) = (NodeName::new("d0").unwrap(), NodeName::new("d1").unwrap());
    qmp.call(&BlockdevAdd::qcow2(&d1, &file("over"), &NodeBacking::Detached)).unwrap();
    qmp.call(&Transaction::snapshots([Snapshot { node: d0.clone(), overlay: d1.clone() }])).unwrap();
    let disks = qmp.call(&QueryBlock {}).unwrap();
    let top = disks[0].inserted.as_ref().unwrap();
    assert_eq!((top.node_name.as_ref(), top.backing_file_depth), (Some(&d1), 1));

    let job = JobId::new("merge").unwrap();
    let commit = BlockCommit {
        job_id: job.clone(),
        device: "d1".into(),
        top_node: None,
        base_node: Some(d0.clone()),
        backing_file: None,
        speed_bytes_per_s: None,
        auto_dismiss: false,
        auto_finalize: true,
    };
    qmp.call(&commit).unwrap();
    qmp.wait_event(|e| e.kind == EventKind::BlockJobReady, soon()).unwrap().expect("never ready");
    let jobs = qmp.call(&QueryBlockJobs {}).unwrap();
    assert!(jobs[0].ready && jobs[0].device == job && jobs[0].status == JobStatus::Ready, "{jobs:?}");
    qmp.call(&BlockJobComplete { device: job.clone() }).unwrap();
    let concluded = |e: &keyframe_qmp::Event| {
        e.kind == EventKind::JobStatusChange && e.text("status").as_deref() == Some("concluded")
    };
    qmp.wait_event(concluded, soon()).unwrap().expect("never concluded");
    let jobs = qmp.call(&QueryJobs {}).unwrap();
    assert_eq!((&jobs[0].id, &jobs[0].status, &jobs[0].error), (&job, &JobStatus::Concluded, &None));
    qmp.call(&JobDismiss { id: job }).unwrap();
    assert_eq!(qmp.call(&QueryJobs {}).unwrap(), []);
    assert_eq!(qmp.call(&QueryBlock {}).unwrap()[0].inserted.as_ref().unwrap().node_name, Some(d0));
    qmp.call(&BlockdevDel { node_name: d1 }).unwrap();
}

#[test]
fn a_chain_deeper_than_any_recursion_limit_can_be_asked_about() {
    let dir = tempfile::tempdir().unwrap();
    let name = |n: usize| format!("l{n}");
    qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", &name(0), "1M"]);
    for n in 1..=150 {
        qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "-u", "-b", &name(n - 1), "-F", "qcow2", &name(n), "1M"]);
    }
    let file = dir.path().join(name(150)).display().to_string();
    let drive = format!("driver=qcow2,node-name=top,file.driver=file,file.filename={file}");
    let qemu = Qemu::start(&["-blockdev", &drive, "-device", "virtio-blk-pci,drive=top,id=vd0"]);
    let mut qmp = qemu.connect();
    let disks = qmp.call(&QueryBlock {}).unwrap();
    assert_eq!(disks[0].inserted.as_ref().unwrap().backing_file_depth, 150);
    assert_eq!(qmp.call(&QueryBlockstats::of(StatsOf::Devices)).unwrap().len(), 1);
    assert!(qmp.call(&QueryNamedBlockNodes::flat()).unwrap().len() > 150);
    // As a tree of values it does not read, which is an error of that request and no more.
    let error = qmp.execute("query-block", &()).unwrap_err();
    assert!(matches!(error, Error::Reply { .. }) && !error.is_fatal(), "{error}");
    qmp.call(&QueryStatus {}).unwrap();
}

#[test]
fn a_machine_moves_through_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mig").display().to_string();
    let (from, to) = (Qemu::start(&[]), Qemu::start(&["-incoming", "defer"]));
    let (mut source, mut target) = (from.connect(), to.connect());
    assert_eq!(target.call(&QueryStatus {}).unwrap().status, RunState::InMigrate);
    // The stream tells the run state: one that never ran would arrive as never having run.
    source.call(&Cont {}).unwrap();
    let address = MigrationAddress::Unix { path };
    target.call(&MigrateSetCapabilities::on([Capability::Events])).unwrap();
    target.call(&MigrateIncoming::from(address.clone())).unwrap();
    source.call(&Migrate::to(address)).unwrap();
    let completed =
        |e: &keyframe_qmp::Event| e.kind == EventKind::Migration && e.text("status").as_deref() == Some("completed");
    target.wait_event(completed, soon()).unwrap().expect("never completed");
    assert_eq!(source.call(&QueryMigrate {}).unwrap().status, Some(MigrationStatus::Completed));
    assert_eq!(target.call(&QueryStatus {}).unwrap().status, RunState::Paused);
    target.call(&Cont {}).unwrap();
    assert!(target.call(&QueryStatus {}).unwrap().running);
}

#[test]
fn a_load_that_fails_leaves_qemu_there_to_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let filename = dir.path().join("nonsense").display().to_string();
    std::fs::write(&filename, b"this is no migration stream").unwrap();
    let qemu = Qemu::start(&["-incoming", "defer"]);
    let mut qmp = qemu.connect();
    qmp.call(&MigrateSetCapabilities::on([Capability::Events])).unwrap();
    qmp.call(&MigrateIncoming::from(MigrationAddress::File { filename, offset: 0 })).unwrap();
    let failed =
        |e: &keyframe_qmp::Event| e.kind == EventKind::Migration && e.text("status").as_deref() == Some("failed");
    qmp.wait_event(failed, soon()).unwrap().expect("never failed");
    let info = qmp.call(&QueryMigrate {}).unwrap();
    assert!(info.status.is_some_and(|status| status.is_final()));
    assert!(info.error_desc.is_some());
}
