//! What a fork's guest is told after it woke up as somebody else: its own network card, thawed file systems, the time.
//!
//! The guest remembers the original's address. Until it has let go of that card and has one with an address of its own,
//! the cable is pulled at QEMU's end, where loading the guest's state does not plug it in again. Every step
//! looks at what is there first, so all of it may be interrupted and done again, by whoever finds the fork's journal.

use std::time::{Duration, Instant};

use keyframe_hypervisor::launch::{NIC_DEVICE, NIC_NETDEV, nic_device};
use keyframe_hypervisor::{InstanceRecord, Nic, load};
use keyframe_qmp::commands::device::{DeviceDel, Link, SetLink};
use keyframe_qmp::commands::machine::{QueryStatus, RunState};
use keyframe_qmp::ids::DeviceId;
use keyframe_qmp::{Client, EventKind};
use serde::Deserialize;
use serde_json::json;

use crate::context::Context;
use crate::error::Error;
use crate::guest;
use crate::machine::{Machine, State, state_of};
use crate::snapshots;
use crate::state::durable;
use crate::state::manifest::{Manifest, StateAtCut};

/// How long a guest may take to let go of its network card.
const UNPLUG_PATIENCE: Duration = Duration::from_secs(10);

/// Pulls the network cable at QEMU's end.
///
/// # Errors
/// What QEMU says.
pub(crate) fn pull_cable(monitor: &mut Client) -> Result<(), Error> {
    monitor.call(&SetLink::new(DeviceId::new(NIC_NETDEV)?, Link::Down))?;
    Ok(())
}

/// Settles a guest that runs; what did not work is told. `frozen` says whether its file systems were frozen.
pub(crate) fn settle(machine: &Machine, instance: &InstanceRecord, monitor: &mut Client, frozen: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(nic) = &machine.definition.nic
        && let Err(error) = swap_card(monitor, nic)
    {
        notes.push(format!("its network card still has the original's address, and its cable is pulled: {error}"));
    }
    if frozen && let Err(error) = guest::thaw(instance) {
        notes.push(format!("the guest's file systems were frozen in the snapshot and are still: {error}"));
    }
    if guest::has_agent(monitor)
        && let Err(error) = guest::set_clock(instance)
    {
        notes.push(format!("the guest's clock was not set: {error}"));
    }
    notes
}

/// Settles a fork whose command was killed after it had put the process on record, and removes its journal.
///
/// # Errors
/// When the process does not answer; the next command tries again.
pub(crate) fn finish(ctx: &Context<'_>, machine: &Machine) -> Result<(), Error> {
    if let Some(process) = machine.process() {
        let mut monitor = machine.monitor()?;
        let origin = origin(ctx, machine);
        let ran = origin.as_ref().is_none_or(|manifest| manifest.state == StateAtCut::Running);
        let status = monitor.call(&QueryStatus {})?;
        // Before its first instruction a machine that boots is `prelaunch`, one that was loaded is paused.
        if !status.running && (ran || status.status == RunState::Prelaunch) {
            load::run(&mut monitor)?;
        }
        let frozen = origin.is_some_and(|manifest| manifest.frozen);
        for note in settle(machine, &process.instance, &mut monitor, frozen) {
            ctx.progress.note(&format!("{}: {note}", machine.name()));
        }
    }
    durable::remove_file(&machine.dir.journal())
}

/// The snapshot that a fork was made from, if it is still there.
fn origin(ctx: &Context<'_>, machine: &Machine) -> Option<Manifest> {
    let origin = machine.head.origin.as_ref()?;
    snapshots::read(&ctx.home.vm(&origin.vm), &origin.snapshot).ok().flatten()
}

/// The address of the card that is plugged in; `None` when there is none.
fn plugged(monitor: &mut Client) -> Result<Option<String>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Filter {
        name: String,
        main_mac: String,
    }
    // Source: RxFilterInfo in qapi/net.json. The device's own property tells what it was started with, not what
    // was loaded.
    let filters: Vec<Filter> = monitor.execute_as("query-rx-filter", &json!({}))?;
    Ok(filters.into_iter().find(|filter| filter.name == NIC_DEVICE).map(|filter| filter.main_mac))
}

/// Pulls the card that the guest remembers, plugs in one with the machine's own address, and then the cable.
fn swap_card(monitor: &mut Client, nic: &Nic) -> Result<(), Error> {
    let own = nic.mac.to_string();
    match plugged(monitor)? {
        Some(mac) if mac.eq_ignore_ascii_case(&own) => {}
        Some(_) => {
            unplug(monitor)?;
            monitor.execute("device_add", &nic_device(&own))?;
        }
        None => {
            monitor.execute("device_add", &nic_device(&own))?;
        }
    }
    monitor.call(&SetLink::new(DeviceId::new(NIC_NETDEV)?, Link::Up))?;
    Ok(())
}

fn unplug(monitor: &mut Client) -> Result<(), Error> {
    let id = DeviceId::new(NIC_DEVICE)?;
    monitor.call(&SetLink::new(id.clone(), Link::Down))?;
    if state_of(monitor) != State::Running {
        return Err(Error::CardOfPaused);
    }
    // A command that was killed may have asked already; then QEMU refuses, and the guest is at it.
    let asked = monitor.call(&DeviceDel { id });
    let gone = |event: &keyframe_qmp::Event| {
        event.kind == EventKind::DeviceDeleted && event.text("device").as_deref() == Some(NIC_DEVICE)
    };
    if monitor.wait_event(gone, Instant::now() + UNPLUG_PATIENCE)?.is_some() || plugged(monitor)?.is_none() {
        return Ok(());
    }
    asked?;
    Err(keyframe_hypervisor::Error::Late { what: "unplugging the network card", waited: UNPLUG_PATIENCE }.into())
}

/// Gives a fork that was paused so far, and could not let go of the original's card, its own.
pub(crate) fn after_resume(machine: &Machine, monitor: &mut Client) -> Option<String> {
    let nic = machine.definition.nic.as_ref().filter(|_| machine.head.origin.is_some())?;
    let error = swap_card(monitor, nic).err()?;
    Some(format!("its network card still has the original's address, and its cable is pulled: {error}"))
}
