//! What every store must do: one suite that all of them run.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, ObjectName, Put, Store};

/// What a store did wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(String);

type Outcome = Result<(), Violation>;

fn ensure(good: bool, what: impl FnOnce() -> String) -> Outcome {
    if good { Ok(()) } else { Err(Violation(what())) }
}

fn done<T>(what: &str, result: crate::Result<T>) -> Result<T, Violation> {
    result.map_err(|error| Violation(format!("{what}: {error}: {error:?}")))
}

fn name(text: &str) -> Result<ObjectName, Violation> {
    done("a name", ObjectName::new(text))
}

/// Runs the whole suite on an empty store.
///
/// # Errors
/// The first [`Violation`].
pub fn run(store: &dyn Store) -> Outcome {
    what_is_put_is_got(store)?;
    ranges_are_exact(store)?;
    absent_objects_are_told(store)?;
    objects_are_replaced_whole(store)?;
    listings_are_complete_and_in_order(store)?;
    deleting_can_be_repeated(store)?;
    if done("creates_exclusively", store.creates_exclusively())? {
        one_of_many_creates(store)?;
    }
    for area in ["conf", "conf2"] {
        for entry in done("list", store.list(area))? {
            done("delete", store.delete(&entry.name))?;
        }
    }
    Ok(())
}

fn what_is_put_is_got(store: &dyn Store) -> Outcome {
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (text, bytes) in [("conf/empty", &[][..]), ("conf/one", b"1"), ("conf/ab/large", &large)] {
        let name = name(text)?;
        done("put", store.put(&name, bytes, Put::Create))?;
        let got = done("get", store.get(&name, bytes.len() as u64))?;
        ensure(got == bytes, || format!("{name} came back different"))?;
        let entry = done("stat", store.stat(&name))?;
        ensure(entry.len == bytes.len() as u64 && entry.name == name, || format!("{entry:?} is not {name}"))?;
    }
    let too_large = store.get(&name("conf/ab/large")?, 2_999_999);
    ensure(matches!(too_large, Err(Error::TooLarge { .. })), || format!("a limit was not kept: {too_large:?}"))
}

fn ranges_are_exact(store: &dyn Store) -> Outcome {
    let name = name("conf/range")?;
    done("put", store.put(&name, b"0123456789", Put::Replace))?;
    for (offset, len, expected) in [(0, 10, "0123456789"), (3, 4, "3456"), (9, 1, "9"), (10, 0, ""), (4, 0, "")] {
        let got = done("get_range", store.get_range(&name, offset, len))?;
        ensure(got == expected.as_bytes(), || format!("{len} bytes at {offset} are {got:?}"))?;
    }
    for (offset, len) in [(0, 11), (10, 1), (u64::MAX, 1), (1 << 40, 3)] {
        let got = store.get_range(&name, offset, len);
        ensure(matches!(got, Err(Error::Short { .. })), || format!("{len} bytes at {offset} gave {got:?}"))?;
    }
    Ok(())
}

fn absent_objects_are_told(store: &dyn Store) -> Outcome {
    let name = name("conf/absent")?;
    let found = [store.get(&name, 1).err(), store.get_range(&name, 0, 1).err(), store.stat(&name).err()];
    let told = found.iter().all(|error| error.as_ref().is_some_and(Error::is_not_found));
    ensure(told, || format!("an absent object gave {found:?}"))
}

fn objects_are_replaced_whole(store: &dyn Store) -> Outcome {
    let name = name("conf/replaced")?;
    for bytes in [&b"a longer text"[..], b"short"] {
        done("put", store.put(&name, bytes, Put::Replace))?;
        let got = done("get", store.get(&name, 100))?;
        ensure(got == bytes, || format!("after replacing it is {got:?}"))?;
    }
    Ok(())
}

fn listings_are_complete_and_in_order(store: &dyn Store) -> Outcome {
    let texts = ["conf2/a", "conf2/ab/1", "conf2/ab/2", "conf2/b"];
    for text in texts {
        done("put", store.put(&name(text)?, text.as_bytes(), Put::Replace))?;
    }
    let listed = done("list", store.list("conf2"))?;
    let found: Vec<_> = listed.iter().map(|entry| entry.name.as_str()).collect();
    ensure(found == texts, || format!("listed {found:?}"))?;
    ensure(listed.iter().all(|entry| entry.len == entry.name.as_str().len() as u64), || {
        format!("lengths: {listed:?}")
    })?;
    let nothing = done("list", store.list("conf3"))?;
    ensure(nothing.is_empty(), || format!("an empty area has {nothing:?}"))
}

fn deleting_can_be_repeated(store: &dyn Store) -> Outcome {
    let name = name("conf2/b")?;
    for _ in 0..2 {
        done("delete", store.delete(&name))?;
        let found = store.stat(&name);
        ensure(found.as_ref().is_err_and(Error::is_not_found), || format!("after deleting there is {found:?}"))?;
    }
    let left = done("list", store.list("conf2"))?.len();
    ensure(left == 3, || format!("{left} objects are left of 3"))
}

fn one_of_many_creates(store: &dyn Store) -> Outcome {
    let name = name("conf/created")?;
    let (won, lost) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for n in 0..8_u8 {
            let (name, won, lost) = (&name, &won, &lost);
            scope.spawn(move || match store.put(name, &[n; 100], Put::Create) {
                Ok(()) => won.fetch_add(1, Ordering::Relaxed),
                Err(Error::Exists { .. }) => lost.fetch_add(1, Ordering::Relaxed),
                Err(_) => 0,
            });
        }
    });
    let counts = (won.into_inner(), lost.into_inner());
    ensure(counts == (1, 7), || format!("of eight creations (won, lost) are {counts:?}"))?;
    let bytes = done("get", store.get(&name, 100))?;
    ensure(bytes.len() == 100 && bytes.windows(2).all(|pair| pair[0] == pair[1]), || "a mixture was created".to_owned())
}
