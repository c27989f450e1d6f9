//! What a file in memory holds, and how a change of it survives a cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;

pub(super) const PAGE: usize = 4096;
pub(super) const SECTOR: usize = 512;

/// The bytes of a file; what has no page is zeroes.
#[derive(Default, Clone)]
pub(super) struct Content {
    pub(super) pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    pub(super) len: u64,
}

/// A change that isn't durable before the next sync.
pub(super) enum FileOp {
    Write { offset: u64, data: Arc<[u8]> },
    SetLen(u64),
    Allocate { offset: u64, len: u64 },
    Punch { offset: u64, len: u64 },
}

impl Content {
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let end = self.len.min(offset + buf.len() as u64);
        let mut done = 0;
        while offset + (done as u64) < end {
            let at = offset + done as u64;
            let (page, skip) = (at / PAGE as u64, at as usize % PAGE);
            let n = (PAGE - skip).min((end - at) as usize);
            match self.pages.get(&page) {
                Some(data) => buf[done..done + n].copy_from_slice(&data[skip..skip + n]),
                None => buf[done..done + n].fill(0),
            }
            done += n;
        }
        done
    }

    pub(super) fn pages_missing(&self, op: &FileOp) -> u64 {
        let (offset, len) = match op {
            FileOp::Write { offset, data } => (*offset, data.len() as u64),
            FileOp::Allocate { offset, len } => (*offset, *len),
            FileOp::SetLen(_) | FileOp::Punch { .. } => return 0,
        };
        pages_of(offset, len).filter(|page| !self.pages.contains_key(page)).count() as u64
    }

    pub(super) fn apply(&mut self, op: &FileOp) {
        match op {
            FileOp::Write { offset, data } => self.write(*offset, data),
            FileOp::SetLen(len) => self.set_len(*len),
            FileOp::Allocate { offset, len } => {
                for page in pages_of(*offset, *len) {
                    self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
                }
                self.len = self.len.max(offset + len);
            }
            FileOp::Punch { offset, len } => {
                for page in pages_of(*offset, *len) {
                    self.punch_page(page, *offset, offset + len);
                }
            }
        }
    }

    pub(super) fn apply_in_part(&mut self, op: &FileOp, rng: &mut StdRng) {
        match op {
            FileOp::Write { offset, data } => {
                let end = offset + data.len() as u64;
                for page in pages_of(*offset, data.len() as u64) {
                    let draw = rng.random_range(0..10);
                    let start = page * PAGE as u64;
                    for sector in (start..start + PAGE as u64).step_by(SECTOR) {
                        let (from, to) = (sector.max(*offset), (sector + SECTOR as u64).min(end));
                        let stays = match draw {
                            0..4 => true,
                            4..8 => false,
                            _ => rng.random_bool(0.5),
                        };
                        if from < to && stays {
                            self.write(from, &data[(from - offset) as usize..(to - offset) as usize]);
                        }
                    }
                }
            }
            FileOp::SetLen(_) | FileOp::Allocate { .. } => {
                if rng.random_bool(0.5) {
                    self.apply(op);
                }
            }
            FileOp::Punch { offset, len } => {
                for page in pages_of(*offset, *len) {
                    if rng.random_bool(0.5) {
                        self.punch_page(page, *offset, offset + len);
                    }
                }
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let skip = at as usize % PAGE;
            let n = (PAGE - skip).min(data.len() - done);
            let page = self.pages.entry(at / PAGE as u64).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[skip..skip + n].copy_from_slice(&data[done..done + n]);
            done += n;
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.split_off(&len.div_ceil(PAGE as u64));
            let skip = len as usize % PAGE;
            if skip > 0
                && let Some(page) = self.pages.get_mut(&(len / PAGE as u64))
            {
                Arc::make_mut(page)[skip..].fill(0);
            }
        }
        self.len = len;
    }

    /// Punches what of one page lies in `from..to`: whole pages go, parts are zeroed.
    pub(super) fn punch_page(&mut self, page: u64, from: u64, to: u64) {
        let start = page * PAGE as u64;
        if from <= start && start + PAGE as u64 <= to {
            self.pages.remove(&page);
        } else if let Some(data) = self.pages.get_mut(&page) {
            let (from, to) = (from.max(start) - start, to.min(start + PAGE as u64) - start);
            Arc::make_mut(data)[from as usize..to as usize].fill(0);
        }
    }
}

fn pages_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / PAGE as u64..(offset + len).div_ceil(PAGE as u64)
}
