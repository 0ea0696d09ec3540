//! What is done behind what was made, or comes between: it takes nothing back, and is told as what it is.

#[allow(dead_code, reason = "each test program uses a part of the world")]
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyframe_daemon::catalog::Wanted;
use keyframe_daemon::fleet::SeenSnapshot;
use keyframe_daemon::job::{Job, State};
use keyframe_daemon::verdict::{self, Row, Verdict};
use keyframe_policy::Policies;
use world::{DAY, Faults, HOUR, Host, Simulated, begin, place, play, policies};

const HOURLY: &str = r#"
    [host]
    jobs = 4
    time_zone = "UTC"

    [policy.standard]
    machines = { names = ["*"] }
    objectives = { rpo = "3h" }

    [[policy.standard.backup]]
    name = "away"
    repository = "/srv/backup"
    schedule = "hourly"
    keep = { last = 50 }
"#;

/// A host of one machine, and a daemon on it.
struct Played {
    host: Host,
    daemon: Option<Simulated>,
    policies: Arc<Policies>,
    path: PathBuf,
    _place: tempfile::TempDir,
}

impl Played {
    fn by(text: &str) -> Self {
        let place = place();
        let path = place.path().join("catalog.db");
        let host = Host::new(1, 5, begin(), Faults::default());
        Self { host, daemon: None, policies: policies(text), path, _place: place }
    }

    fn play(&mut self, span: Duration) {
        play(&self.host, &mut self.daemon, &self.path, &self.policies, span);
    }

    /// By other policies from now on.
    fn use_policies(&mut self, text: &str) {
        self.policies = policies(text);
        let (now, policies) = (self.host.now(), Arc::clone(&self.policies));
        self.daemon().use_policies(policies, now);
    }

    fn daemon(&mut self) -> &mut Simulated {
        self.daemon.as_mut().expect("it runs")
    }

    fn row(&mut self) -> Row {
        let now = self.host.now();
        verdict::rows(self.daemon(), now).remove(0)
    }

    fn points(&self) -> usize {
        self.host.0.borrow().points.values().map(Vec::len).sum()
    }

    /// Jobs, the latest first.
    fn jobs(&mut self) -> Vec<Job> {
        self.daemon().catalog().jobs(&Wanted { limit: 1000, ..Wanted::default() }).unwrap()
    }
}

#[test]
fn a_prune_of_three_hours_holds_up_no_point() {
    let mut played = Played::by(HOURLY);
    played.host.0.borrow_mut().takes.insert("prune", HOUR * 3);
    played.play(HOUR * 8);
    assert_eq!(played.points(), 1 + 8, "the first at once, and one each hour");
    assert!(!played.host.0.borrow().two_on_one);
    assert_eq!(played.row().rpo.met, Some(true));
}

#[test]
fn a_backup_that_takes_longer_than_to_the_next_is_followed_by_one_more() {
    let mut played = Played::by(HOURLY);
    played.play(HOUR);
    played.host.0.borrow_mut().takes.insert("backup", HOUR * 3 / 2);
    played.play(HOUR * 9);
    let made = played.points() - 2;
    assert!((5..=6).contains(&made), "each follows the one before at once: {made}");
    assert!(!played.host.0.borrow().two_on_one);
    let open = played.jobs().into_iter().filter(|job| !job.state.is_over()).count();
    assert!(open <= 2, "one at work, and one for all that came due meanwhile: {open}");
}

#[test]
fn what_comes_due_faster_than_it_is_done_leaves_others_their_turn() {
    let mut played = Played::by(&format!(
        "{HOURLY}\n[policy.standard.snapshot]\nschedule = \"*:*:0/10\"\nkeep = {{ last = 3 }}\n\
         [policy.standard.drill]\nschedule = \"hourly\"\nwhat = \"point\"\n"
    ));
    played.host.0.borrow_mut().takes.insert("snapshot", Duration::from_secs(30));
    played.play(HOUR * 4);
    let (points, drills) = (played.points(), played.host.0.borrow().drills);
    assert!(points >= 4 && drills >= 4, "{points} points, {drills} drills");
    let snapshots = played.host.0.borrow().made.iter().filter(|(_, name, _)| name.starts_with("auto-")).count();
    assert!(snapshots > 100, "{snapshots} snapshots, each with what it lets go");
}

#[test]
fn who_gives_way_gives_its_place_to_nobody_else() {
    let mut played = Played::by(&format!(
        "{}\n[policy.standard.snapshot]\nschedule = \"*:0/5\"\nkeep = {{ last = 3 }}\n\
         [policy.other]\nmachines = {{ names = [\"other*\"] }}\npriority = 5\n\
         [policy.other.snapshot]\nschedule = \"*:0/5\"\nkeep = {{ last = 3 }}\n",
        HOURLY.replace("jobs = 4", "jobs = 1")
    ));
    played.host.change_machines(|machines| {
        let seen = machines["vm000"].clone();
        machines.extend((0..9).map(|number| (format!("other{number}"), seen.clone())));
    });
    played.host.0.borrow_mut().takes.insert("snapshot", Duration::from_secs(120));
    played.play(HOUR * 10);
    assert!(played.points() >= 5, "{} points, while others fill the host", played.points());
    let world = played.host.0.borrow();
    let of =
        |machine: &str| world.made.iter().filter(|(of, name, _)| of == machine && name.starts_with("auto-")).count();
    assert!(of("vm000") >= 5 && of("other3") >= 5, "{} and {} snapshots", of("vm000"), of("other3"));
}

#[test]
fn what_cannot_be_tidied_takes_no_point_back() {
    let mut played = Played::by(HOURLY);
    played.host.0.borrow_mut().fails_at = vec!["prune"];
    played.play(DAY);
    assert!(played.points() >= 24, "{}", played.points());
    let jobs = played.jobs();
    assert!(jobs.iter().all(|job| job.state != State::Failed && !job.given_up), "{jobs:#?}");
    let row = played.row();
    assert_eq!(row.rpo.met, Some(true));
    let over = jobs.iter().filter(|job| job.state.is_over() && job.untidy.is_some()).count();
    assert!(over >= 1, "after eight times it is told");
    let said = "freeing what nothing refers to: something went wrong";
    assert!(jobs.iter().filter_map(|job| job.untidy.as_deref()).all(|untidy| untidy == said));
    // As long as the latest one is so; the daemon that comes next knows it, too.
    played.host.0.borrow_mut().fails_at = vec!["forget"];
    let untidy = |row: &Row| row.why.iter().any(|reason| reason.id == "untidy/backup:away");
    let mut told = false;
    for hour in 0..24 {
        played.play(HOUR);
        let row = played.row();
        told |= untidy(&row);
        assert_eq!(row.rpo.met, Some(true), "{hour}: a job that ends late takes no later point's place: {row:?}");
    }
    assert!(told);
    played.host.0.borrow_mut().fails_at.clear();
    played.play(HOUR * 12);
    let row = played.row();
    assert_eq!((row.verdict, row.why), (Verdict::Protected, vec![]));
}

#[test]
fn what_was_made_counts_before_all_is_tidied() {
    let mut played = Played::by(HOURLY);
    played.host.0.borrow_mut().takes.insert("prune", DAY);
    played.play(HOUR / 2);
    let (points, row) = (played.points(), played.row());
    assert_eq!(points, 1);
    assert!(row.last_point.is_some(), "{:?}", row.reasons);
    // Also for the next daemon.
    played.daemon = None;
    played.play(Duration::from_secs(60));
    assert_eq!(played.row().last_point, row.last_point);
}

#[test]
fn that_it_did_not_come_back_is_said_whoever_ends_the_job_then() {
    let drills = format!(
        "{HOURLY}\n[policy.standard.snapshot]\nschedule = \"hourly\"\nkeep = {{ last = 3 }}\n\
         [policy.standard.drill]\nschedule = \"01:30\"\nwhat = [\"point\", \"snapshot\"]\n"
    );
    // It has no snapshot to test, or somebody cancels.
    for cancels in [false, true] {
        let mut played = Played::by(&drills);
        played.host.0.borrow_mut().does_not_come_back = Some("vm000".to_owned());
        if cancels {
            played.host.0.borrow_mut().takes.insert("test", HOUR);
        } else {
            played.host.0.borrow_mut().fails_at = vec!["snapshot"];
        }
        played.play(HOUR * 3 / 2);
        let drill = played.jobs().into_iter().find(|job| job.kind() == "drill").expect("it is due");
        if cancels && !drill.state.is_over() {
            let now = played.host.now();
            played.daemon().cancel(&drill.id, "token night", now).unwrap();
            played.play(Duration::from_secs(60));
        }
        let drill = played.jobs().into_iter().find(|job| job.id == drill.id).unwrap();
        assert_eq!((drill.state, drill.refuted, drill.given_up), (State::Failed, true, false), "cancels: {cancels}");
        let row = played.row();
        assert!(row.last_drill.as_ref().is_some_and(|drill| !drill.passed), "cancels: {cancels}");
        assert!(row.why.iter().any(|reason| reason.id == "drill"), "{:?}", row.reasons);
    }
}

#[test]
fn another_machine_by_that_name_and_another_repository_begin_with_nothing() {
    let weekly = HOURLY.replace("hourly", "weekly").replace("3h", "9d");
    let mut played = Played::by(&weekly);
    let is = |played: &Played, uuid: &str| {
        played.host.change_machines(|machines| machines.get_mut("vm000").unwrap().uuid = uuid.to_owned());
    };
    is(&played, "one");
    played.play(HOUR);
    assert_eq!((played.points(), played.row().last_point.is_some()), (1, true));
    played.play(HOUR);
    assert_eq!(played.points(), 1, "it is not due again");
    is(&played, "two");
    played.play(Duration::from_secs(1));
    assert_eq!(played.row().last_point, None, "what there is is another machine's");
    played.play(HOUR);
    assert_eq!((played.points(), played.row().last_point.is_some()), (2, true), "it is due at once");
    played.use_policies(&weekly.replace("/srv/backup", "/srv/other"));
    assert_eq!(played.row().last_point, None, "there is none in this repository");
    played.play(HOUR);
    assert_eq!(played.points(), 3, "it is due at once");
    // The next daemon does not begin again.
    played.daemon = None;
    played.play(HOUR);
    assert_eq!((played.points(), played.row().last_point.is_some()), (3, true));
}

#[test]
fn what_a_machine_wants_is_known_without_any_policy() {
    let mut played = Played::by(
        "[policy.standard]\nmachines = { names = [\"other\"] }\n[policy.standard.snapshot]\nschedule = \"daily\"\nkeep = { last = 1 }\n",
    );
    played.play(HOUR);
    let wants = |played: &mut Played| {
        let now = played.host.now();
        played.daemon().upkeep_of("vm000", now)
    };
    assert_eq!(wants(&mut played), None);
    let snapshot = SeenSnapshot {
        id: "1".to_owned(),
        name: "by-hand".to_owned(),
        created: begin(),
        owner: "anna".to_owned(),
        expires: Some(played.host.now().checked_add(HOUR).unwrap()),
        held: false,
    };
    played.host.0.borrow_mut().snapshots.insert("vm000".to_owned(), vec![snapshot]);
    played.host.change_machines(|machines| machines.get_mut("vm000").unwrap().snapshots = 1);
    played.play(HOUR / 2);
    assert_eq!(wants(&mut played), None);
    played.play(HOUR);
    assert_eq!(wants(&mut played), Some("expire"));
    played.host.change_machines(|machines| machines.get_mut("vm000").unwrap().unfinished = true);
    played.play(Duration::from_secs(1));
    assert_eq!(wants(&mut played), Some("consolidate"));
}

#[test]
fn a_machine_that_is_gone_is_missed_until_it_is_forgotten() {
    let mut played = Played::by(HOURLY);
    played.play(HOUR);
    assert_eq!(played.daemon().gone().count(), 0);
    let seen = played.host.0.borrow().machines["vm000"].clone();
    played.host.change_machines(|machines| drop(machines.remove("vm000")));
    played.play(HOUR);
    assert_eq!(played.daemon().gone().collect::<Vec<_>>(), ["vm000"]);
    played.daemon = None;
    played.play(HOUR);
    assert_eq!(played.daemon().gone().collect::<Vec<_>>(), ["vm000"], "the next daemon knows, too");
    played.host.change_machines(|machines| drop(machines.insert("vm000".to_owned(), seen.clone())));
    played.play(HOUR);
    assert_eq!(played.daemon().gone().count(), 0);
    played.host.change_machines(|machines| drop(machines.remove("vm000")));
    played.play(HOUR);
    let now = played.host.now();
    played.daemon().forget_machine("vm000", now);
    played.play(HOUR);
    assert_eq!(played.daemon().gone().count(), 0);
    played.daemon = None;
    played.play(HOUR);
    assert_eq!(played.daemon().gone().count(), 0, "the next daemon has forgotten it, too");
}
