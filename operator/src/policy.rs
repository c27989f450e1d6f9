//! When clusters get another version without anybody naming it: the operator's policy. Pure.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::jiff::civil::Weekday;
use k8s_openapi::jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Deserializer};

use crate::config::VERSION;
use crate::version::is_later;

/// Clusters that are upgraded at the same time, unless said otherwise.
const CLUSTERS_MAX_DEFAULT: u16 = 1;
/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;

/// Whether clusters follow the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Mode {
    /// Each runs what it runs until its `spec.version` says otherwise.
    #[default]
    Manual,
    /// Those that name no version get the operator's own, as window, limit and canaries allow.
    Automatic,
}

/// The policy, as the operator's configuration file has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UpgradePolicy {
    /// Whether clusters follow the operator.
    pub mode: Mode,
    /// When upgrades begin; `None`: at any time. One that has begun is finished.
    pub window: Option<Window>,
    /// Clusters that are upgraded at the same time.
    pub clusters_max: u16,
    /// Clusters with all of these labels come first, and all others wait until they run the version and are ready. Empty: none.
    pub canaries: BTreeMap<String, String>,
}

impl Default for UpgradePolicy {
    fn default() -> UpgradePolicy {
        UpgradePolicy {
            mode: Mode::default(),
            window: None,
            clusters_max: CLUSTERS_MAX_DEFAULT,
            canaries: BTreeMap::new(),
        }
    }
}

/// Times of a week, in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Window {
    /// The days on which it begins (`Mon` to `Sun`); empty: every day.
    #[serde(default)]
    pub days: Vec<Day>,
    /// When it begins, as `22:00`.
    pub start: Minutes,
    /// When it ends, as `04:00`: of the next day, if that is not after `start`.
    pub end: Minutes,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    fn of(weekday: Weekday) -> Day {
        match weekday {
            Weekday::Monday => Day::Mon,
            Weekday::Tuesday => Day::Tue,
            Weekday::Wednesday => Day::Wed,
            Weekday::Thursday => Day::Thu,
            Weekday::Friday => Day::Fri,
            Weekday::Saturday => Day::Sat,
            Weekday::Sunday => Day::Sun,
        }
    }
}

/// A time of day (minutes since midnight).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minutes(u16);

impl<'de> Deserialize<'de> for Minutes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Minutes, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = text.split_once(':').and_then(|(hours, minutes)| {
            let (hours, minutes) = (hours.parse::<u16>().ok()?, minutes.parse::<u16>().ok()?);
            (hours < 24 && minutes < 60).then_some(Minutes(hours * 60 + minutes))
        });
        parsed.ok_or_else(|| {
            serde::de::Error::custom(format!("'{text}' is no time of day: write it as \"22:00\", in UTC"))
        })
    }
}

impl fmt::Display for Minutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl Window {
    /// Whether it is open.
    pub fn contains(&self, now: Timestamp) -> bool {
        let now = now.to_zoned(TimeZone::UTC);
        let minute =
            u16::try_from(i32::from(now.hour()) * 60 + i32::from(now.minute())).unwrap_or(DAY_MINUTES);
        let (start, end) = (self.start.0, self.end.0);
        let begins = |day: Weekday| self.days.is_empty() || self.days.contains(&Day::of(day));
        let (today, yesterday) = (now.weekday(), now.weekday().previous());
        if start < end {
            return begins(today) && (start..end).contains(&minute);
        }
        (begins(today) && minute >= start) || (begins(yesterday) && minute < end)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} UTC", self.start, self.end)?;
        if !self.days.is_empty() {
            let days: Vec<String> = self.days.iter().map(|day| format!("{day:?}")).collect();
            write!(f, " from {}", days.join(", "))?;
        }
        Ok(())
    }
}

/// A cluster, as the policy sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Namespace and name.
    pub name: String,
    /// It names its version itself.
    pub is_pinned: bool,
    /// What its pods are told to run.
    pub target: Option<String>,
    /// What they run.
    pub version: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It can be used.
    pub is_ready: bool,
    /// Its upgrade doesn't get on.
    pub is_blocked: bool,
}

impl Member {
    fn is_upgrading(&self) -> bool {
        self.target.is_some() && self.version.is_some() && self.target != self.version
    }

    fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }

    /// It runs the operator's version, and works.
    fn is_done(&self) -> bool {
        self.version.as_deref() == Some(VERSION) && !self.is_upgrading() && self.is_ready
    }
}

/// What the policy has for a cluster now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Offer {
    /// Nothing.
    #[default]
    Nothing,
    /// This version.
    Now(String),
    /// A version, later: why.
    Wait(String),
}

/// What there is for a cluster that names no version. `all` are all clusters, this one included.
pub fn offer(policy: &UpgradePolicy, now: Timestamp, this: &Member, all: &[Member]) -> Offer {
    let Some(target) = &this.target else { return Offer::Nothing };
    // Never an earlier one: an operator that was taken back takes no cluster along.
    if policy.mode == Mode::Manual || this.is_pinned || !is_later(VERSION, target) {
        return Offer::Nothing;
    }
    let waits = |why: String| Offer::Wait(format!("{VERSION} is available, and the upgrade waits: {why}"));
    if let Some(window) = policy.window.as_ref().filter(|window| !window.contains(now)) {
        return waits(format!("the window is {window}"));
    }
    let others = || all.iter().filter(|other| other.name != this.name);
    if let Some(stuck) = others().find(|other| other.is_upgrading() && other.is_blocked) {
        return waits(format!("the upgrade of {} is blocked", stuck.name));
    }
    let upgrading = others().filter(|other| other.is_upgrading()).count();
    if upgrading >= usize::from(policy.clusters_max) {
        return waits(format!(
            "{upgrading} others are being upgraded (clustersMax: {})",
            policy.clusters_max
        ));
    }
    let is_canary = |member: &Member| !policy.canaries.is_empty() && member.has(&policy.canaries);
    if !is_canary(this)
        && let Some(canary) = others().find(|other| is_canary(other) && !other.is_pinned && !other.is_done())
    {
        return waits(format!("{} comes first, and isn't ready with that version yet", canary.name));
    }
    Offer::Now(VERSION.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0.0.9";

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn member(name: &str, version: &str) -> Member {
        Member {
            name: name.into(),
            target: Some(version.into()),
            version: Some(version.into()),
            is_ready: true,
            ..Member::default()
        }
    }

    fn automatic() -> UpgradePolicy {
        UpgradePolicy { mode: Mode::Automatic, ..UpgradePolicy::default() }
    }

    fn waits(offer: &Offer, text: &str) {
        assert!(matches!(offer, Offer::Wait(why) if why.contains(text)), "{offer:?}");
    }

    #[test]
    fn nothing_follows_the_operator_unless_the_policy_says_so() {
        let (this, now) = (member("a", OLD), at("2026-06-01T12:00:00Z"));
        assert_eq!(offer(&UpgradePolicy::default(), now, &this, &[]), Offer::Nothing);
        assert_eq!(offer(&automatic(), now, &this, &[]), Offer::Now(VERSION.into()));
        let pinned = Member { is_pinned: true, ..this.clone() };
        assert_eq!(offer(&automatic(), now, &pinned, &[]), Offer::Nothing);
        for version in [VERSION, "999.0.0", "nightly"] {
            assert_eq!(offer(&automatic(), now, &member("a", version), &[]), Offer::Nothing, "{version}");
        }
        assert_eq!(offer(&automatic(), now, &Member { target: None, ..this }, &[]), Offer::Nothing);
    }

    #[test]
    fn so_many_at_a_time_and_none_after_one_that_is_stuck() {
        let now = at("2026-06-01T12:00:00Z");
        let (this, idle) = (member("a", OLD), member("b", OLD));
        let busy = Member { target: Some(VERSION.into()), ..member("c", OLD) };
        let all = [this.clone(), idle.clone(), busy.clone()];
        waits(&offer(&automatic(), now, &this, &all), "1 others");
        let two = UpgradePolicy { clusters_max: 2, ..automatic() };
        assert_eq!(offer(&two, now, &this, &all), Offer::Now(VERSION.into()));
        let stuck = Member { is_blocked: true, ..busy };
        waits(&offer(&two, now, &this, &[this.clone(), idle, stuck]), "of c is blocked");
    }

    #[test]
    fn canaries_come_first() {
        let now = at("2026-06-01T12:00:00Z");
        let labels = BTreeMap::from([("canary".to_owned(), "yes".to_owned())]);
        let policy = UpgradePolicy { canaries: labels.clone(), clusters_max: 9, ..automatic() };
        let this = member("a", OLD);
        let canary = |version: &str| Member { labels: labels.clone(), ..member("b", version) };
        waits(&offer(&policy, now, &this, &[this.clone(), canary(OLD)]), "b comes first");
        assert_eq!(
            offer(&policy, now, &canary(OLD), &[this.clone(), canary(OLD)]),
            Offer::Now(VERSION.into())
        );
        assert_eq!(offer(&policy, now, &this, &[canary(VERSION)]), Offer::Now(VERSION.into()));
        let sick = Member { is_ready: false, ..canary(VERSION) };
        waits(&offer(&policy, now, &this, &[sick]), "b comes first");
        // One that names its own version isn't waited for.
        let fixed = Member { is_pinned: true, ..canary(OLD) };
        assert_eq!(offer(&policy, now, &this, &[fixed]), Offer::Now(VERSION.into()));
    }

    #[test]
    fn a_window_may_go_past_midnight() {
        let window = |text: &str| serde_yaml::from_str::<Window>(text).expect("valid");
        let night = window("{days: [Sat], start: '22:00', end: '04:00'}");
        // 2026-06-06 is a Saturday.
        for (time, open) in [
            ("2026-06-06T21:59:00Z", false),
            ("2026-06-06T22:00:00Z", true),
            ("2026-06-07T03:59:00Z", true),
            ("2026-06-07T04:00:00Z", false),
            ("2026-06-07T23:00:00Z", false),
            ("2026-06-06T03:00:00Z", false),
        ] {
            assert_eq!(night.contains(at(time)), open, "{time}");
        }
        let noon = window("{start: '12:00', end: '13:00'}");
        assert!(noon.contains(at("2026-06-03T12:30:00Z")) && !noon.contains(at("2026-06-03T13:00:00Z")));
        let policy = UpgradePolicy { window: Some(noon), ..automatic() };
        waits(&offer(&policy, at("2026-06-03T14:00:00Z"), &member("a", OLD), &[]), "12:00 to 13:00 UTC");
        for wrong in ["{start: '24:00', end: '01:00'}", "{start: noon, end: '01:00'}", "{start: '01:00'}"] {
            assert!(serde_yaml::from_str::<Window>(wrong).is_err(), "{wrong}");
        }
    }
}
