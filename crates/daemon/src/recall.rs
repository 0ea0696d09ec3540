//! What a daemon remembers when it starts: its catalog, made anew from records where it is damaged or gone, and where there is no room
//! to open it, a stand-in in memory that shows what records tell, and in which nothing can be kept.

use std::path::Path;

use jiff::Timestamp;

use crate::catalog::{Catalog, Found};
use crate::error::Error;
use crate::records::Records;
use crate::scheduler::Remembered;
use crate::service::catalog_file;

/// A catalog, and what is in it.
#[derive(Debug)]
pub(crate) struct Recalled {
    pub catalog: Catalog,
    pub remembered: Remembered,
    /// What somebody should hear of.
    pub trouble: Option<String>,
}

impl Recalled {
    /// From the catalog below `HOME/serve`.
    pub fn from_catalog(serve: &Path, records: &Records, now: Timestamp) -> Result<Self, Error> {
        let (mut catalog, found) = Catalog::open(&catalog_file(serve), now)?;
        let Found::Anew { aside } = found else {
            let remembered = Remembered::of(&catalog)?;
            return Ok(Self { catalog, remembered, trouble: None });
        };
        let trouble = aside
            .map(|aside| format!("the catalog was damaged, and made anew from records; it is in {}", aside.display()));
        let remembered = put(&mut catalog, records)?;
        Ok(Self { catalog, remembered, trouble })
    }

    /// The same; a stand-in where there is no room for that.
    pub fn whatever_the_room(serve: &Path, records: &Records, now: Timestamp) -> Result<Self, Error> {
        match Self::from_catalog(serve, records, now) {
            Err(error) if error.may_want_room() => {
                tracing::error!("the catalog cannot be opened, nothing is begun until it can: {}", error.told());
                let mut catalog = Catalog::in_memory(&catalog_file(serve))?;
                let remembered = put(&mut catalog, records)?;
                Ok(Self { catalog: catalog.standing_in(error.told()), remembered, trouble: None })
            }
            recalled => recalled,
        }
    }
}

/// Puts what records tell into a catalog that is empty.
fn put(catalog: &mut Catalog, records: &Records) -> Result<Remembered, Error> {
    let jobs = records.all()?;
    let remembered = Remembered::from_records(jobs.clone());
    catalog.change(|catalog| remembered.put(&jobs, catalog).and_then(|()| catalog.complete()))?;
    Ok(remembered)
}
