//! The daemon as a whole, without machines: what it does about addresses, signals and its end.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use keyframe_daemon::audit;
use keyframe_daemon::catalog::Catalog;
use keyframe_daemon::service::{Config, Service, catalog_file, directory};
use keyframe_engine::Home;

fn config(home: &Path, reload: &Arc<AtomicBool>) -> Config {
    Config {
        home: Home::open(home).unwrap(),
        policies: Vec::new(),
        program: "false".into(),
        version: "test".to_owned(),
        reload: Arc::clone(reload),
    }
}

fn within(seconds: u64, is: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        if is() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

#[test]
fn an_address_that_is_taken_keeps_nothing_else_from_being_served_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let reload = Arc::new(AtomicBool::new(false));
    let (config, over) = (config(&home, &reload), Arc::new(AtomicBool::new(false)));
    let serve = directory(&config.home);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    let ending = Arc::clone(&over);
    let daemon = std::thread::spawn(move || {
        keyframe_daemon::serve(config, Some(address), &ending, |unheard| tell.send(unheard.map(str::to_owned)).unwrap())
    });
    let unheard = told.recv_timeout(Duration::from_secs(20)).expect("it serves").expect("and says what it cannot");
    assert!(unheard.contains(&address.to_string()) && unheard.contains("in use"), "{unheard}");
    assert!(serve.join("api.sock").exists());
    let alerts = || Catalog::reader(&catalog_file(&serve)).and_then(|catalog| catalog.alerts()).unwrap_or_default();
    assert!(within(10, || alerts().iter().any(|alert| alert.id == "listen")), "{:?}", alerts());
    drop(taken);
    assert!(within(20, || TcpStream::connect(address).is_ok()), "nobody listens");
    assert!(within(20, || alerts().iter().all(|alert| alert.id != "listen")), "{:?}", alerts());
    // What a signal asks for is done, and on record.
    let read = || audit::read(&serve).unwrap().0.iter().filter(|entry| entry.who == "SIGHUP").count();
    assert_eq!(read(), 0);
    reload.store(true, Ordering::Relaxed);
    assert!(within(10, || read() == 1), "policies were not read again");
    over.store(true, Ordering::Relaxed);
    daemon.join().unwrap().unwrap();
}

#[test]
fn who_asks_while_it_ends_is_told_that() {
    let dir = tempfile::tempdir().unwrap();
    let reload = Arc::new(AtomicBool::new(false));
    let over = Arc::new(AtomicBool::new(true));
    let (service, shared) = Service::start(config(&dir.path().join("home"), &reload), &over).unwrap();
    assert!(!shared.view().overview.draining);
    service.run(&over, || {});
    assert!(shared.view().overview.draining);
}
