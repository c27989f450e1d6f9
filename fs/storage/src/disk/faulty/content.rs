//! What a file in memory holds, and how a change of it survives a cut.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::{Arc, LazyLock};

use rand::Rng;
use rand::rngs::StdRng;

pub(super) const PAGE: usize = 4096;
pub(super) const SECTOR: usize = 512;

type Page = Arc<[u8; PAGE]>;

/// A page of zeroes, which is shared until it is written to.
fn zero_page() -> Page {
    static ZEROES: LazyLock<Page> = LazyLock::new(|| Arc::new([0; PAGE]));
    ZEROES.clone()
}

/// What a write brings to one page. Whole pages are shared by what is live and what is durable: a simulation writes many.
pub(super) enum Part {
    Whole(Page),
    Some(Box<[u8]>),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Part::Whole(page) => &page[..],
            Part::Some(bytes) => bytes,
        }
    }
}

/// The bytes of a file; what has no page is zeroes.
#[derive(Default, Clone)]
pub(super) struct Content {
    pub(super) pages: BTreeMap<u64, Page>,
    pub(super) len: u64,
}

/// A change that isn't durable before the next sync.
pub(super) enum FileOp {
    Write { offset: u64, len: u64, parts: Vec<Part> },
    SetLen(u64),
    Allocate { offset: u64, len: u64 },
    Punch { offset: u64, len: u64 },
}

impl FileOp {
    /// A write of all of `bufs`.
    pub(super) fn write(offset: u64, bufs: &[IoSlice<'_>]) -> FileOp {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        let mut bytes = bufs.iter().flat_map(|buf| buf.chunks(PAGE));
        let mut rest: &[u8] = &[];
        let mut fill = |mut to: &mut [u8]| {
            while !to.is_empty() {
                if rest.is_empty() {
                    rest = bytes.next().unwrap_or_default();
                }
                let n = rest.len().min(to.len());
                let (now, later) = to.split_at_mut(n);
                now.copy_from_slice(&rest[..n]);
                (to, rest) = (later, &rest[n..]);
            }
        };
        let part = |page: u64| {
            let start = page * PAGE as u64;
            let n = (start + PAGE as u64).min(offset + len) - start.max(offset);
            if n == PAGE as u64 {
                let mut page = zero_page();
                fill(&mut Arc::make_mut(&mut page)[..]);
                return Part::Whole(page);
            }
            let mut some = vec![0; n as usize];
            fill(&mut some);
            Part::Some(some.into())
        };
        FileOp::Write { offset, len, parts: pages_of(offset, len).map(part).collect() }
    }
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
            FileOp::Write { offset, len, .. } => (*offset, *len),
            FileOp::Allocate { offset, len } => (*offset, *len),
            FileOp::SetLen(_) | FileOp::Punch { .. } => return 0,
        };
        pages_of(offset, len).filter(|page| !self.pages.contains_key(page)).count() as u64
    }

    pub(super) fn apply(&mut self, op: &FileOp) {
        match op {
            FileOp::Write { offset, len, parts } => {
                let mut at = *offset;
                for part in parts {
                    match part {
                        Part::Whole(page) => drop(self.pages.insert(at / PAGE as u64, page.clone())),
                        Part::Some(bytes) => self.write(at, bytes),
                    }
                    at += part.bytes().len() as u64;
                }
                self.len = self.len.max(offset + len);
            }
            FileOp::SetLen(len) => self.set_len(*len),
            FileOp::Allocate { offset, len } => {
                for page in pages_of(*offset, *len) {
                    self.pages.entry(page).or_insert_with(zero_page);
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
            FileOp::Write { offset, len, parts } => {
                let end = offset + len;
                for (page, part) in pages_of(*offset, *len).zip(parts) {
                    let draw = rng.random_range(0..10);
                    let start = page * PAGE as u64;
                    let first = start.max(*offset);
                    for sector in (start..start + PAGE as u64).step_by(SECTOR) {
                        let (from, to) = (sector.max(*offset), (sector + SECTOR as u64).min(end));
                        let stays = match draw {
                            0..4 => true,
                            4..8 => false,
                            _ => rng.random_bool(0.5),
                        };
                        if from < to && stays {
                            self.write(from, &part.bytes()[(from - first) as usize..(to - first) as usize]);
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
            let page = self.pages.entry(at / PAGE as u64).or_insert_with(zero_page);
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
