use atoll_core::ids::MemberId;
use parking_lot::Mutex;

use super::*;

/// What a server does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Leads,
    Follows,
    /// It waits to be added.
    Waits,
    Refuses,
    /// It takes packets and says nothing, for ever.
    Hangs,
}

/// Servers by their addresses, and who was asked.
struct Stand {
    servers: Vec<(&'static str, Manner)>,
    asked: Mutex<Vec<String>>,
}

impl Stand {
    fn new(servers: &[(&'static str, Manner)]) -> Stand {
        Stand { servers: servers.to_vec(), asked: Mutex::default() }
    }

    fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|(address, _)| (*address).to_owned()).collect()
    }

    async fn manner(&self, address: &str) -> Result<Manner, AskError> {
        self.asked.lock().push(address.to_owned());
        let (_, manner) = self.servers.iter().find(|(known, _)| *known == address).expect("a known address");
        match manner {
            Manner::Hangs => std::future::pending().await,
            Manner::Refuses => Err(AskError::Silent { address: address.to_owned() }),
            manner => Ok(*manner),
        }
    }
}

impl Servers for Stand {
    fn status<'a>(&'a self, _: &'a Access, address: &'a str) -> Asked<'a, ClusterStatus> {
        Box::pin(async move {
            let manner = self.manner(address).await?;
            Ok(ClusterStatus {
                cluster: (manner != Manner::Waits).then_some(ClusterId(7)),
                member: MemberId(address.len() as u64),
                is_leader: manner == Manner::Leads,
                ..ClusterStatus::default()
            })
        })
    }

    fn who<'a>(&'a self, _: &'a Access, _: &'a str) -> Asked<'a, MemberIdentity> {
        Box::pin(std::future::pending())
    }

    fn bootstrap<'a>(&'a self, _: &'a Access, _: &'a str, _: &'a VolumeConfig) -> Asked<'a, ()> {
        Box::pin(std::future::pending())
    }

    fn change_server<'a>(&'a self, _: &'a Access, _: &'a str, _: ChangeServer) -> Asked<'a, ()> {
        Box::pin(std::future::pending())
    }

    fn change_members<'a>(&'a self, _: &'a Access, address: &'a str, _: &'a MembersChange) -> Asked<'a, ()> {
        Box::pin(async move {
            match self.manner(address).await? {
                Manner::Leads => Ok(()),
                _ => {
                    let error = MetadataError::NotLeader { leader: None };
                    Err(AskError::Refused { address: address.to_owned(), error })
                }
            }
        })
    }

    fn resize<'a>(&'a self, _: &'a Access, _: &'a str, _: ResizeVolume) -> Asked<'a, ()> {
        Box::pin(std::future::pending())
    }

    fn transfer_leader<'a>(&'a self, _: &'a Access, _: &'a str, _: TransferLeader) -> Asked<'a, ()> {
        Box::pin(std::future::pending())
    }

    fn raise_level<'a>(&'a self, _: &'a Access, _: &'a str, _: RaiseFeatureLevel) -> Asked<'a, ()> {
        Box::pin(std::future::pending())
    }
}

fn access() -> Access {
    Access { cluster: ClusterId(7), key: ClusterKey::new([1; 32]), encryption: Encryption::Off }
}

async fn said(servers: &Stand, led: Option<&str>) -> Said {
    status(servers, &access(), &servers.addresses(), led).await
}

#[tokio::test]
async fn servers_that_say_nothing_cost_no_more_than_the_answer_of_the_leader() {
    use Manner::{Follows, Hangs, Leads};
    let servers = Stand::new(&[("a", Hangs), ("b", Follows), ("c", Leads), ("d", Hangs)]);
    for led in [None, Some("a"), Some("c")] {
        let said = said(&servers, led).await;
        assert!(matches!(&said.fact, MetadataFact::Answers(answer) if answer.is_leader), "{said:?}");
        assert_eq!(said.leader.as_deref(), Some("c"));
    }
}

#[tokio::test]
async fn who_led_the_last_time_is_asked_alone() {
    let servers = Stand::new(&[("a", Manner::Follows), ("b", Manner::Leads), ("c", Manner::Follows)]);
    said(&servers, Some("b")).await;
    assert_eq!(*servers.asked.lock(), ["b"]);
    // It leads no more.
    servers.asked.lock().clear();
    assert_eq!(said(&servers, Some("a")).await.leader.as_deref(), Some("b"));
    assert_eq!(servers.asked.lock()[0], "a");
}

#[tokio::test]
async fn without_a_leader_a_member_of_the_group_counts_more_than_one_that_waits() {
    use Manner::{Follows, Refuses, Waits};
    for servers in [
        [("a", Waits), ("bb", Follows), ("c", Refuses)],
        [("bb", Follows), ("a", Waits), ("c", Refuses)],
        [("c", Refuses), ("bb", Follows), ("a", Waits)],
    ] {
        let said = said(&Stand::new(&servers), None).await;
        let MetadataFact::Answers(answer) = &said.fact else { panic!("{said:?}") };
        assert_eq!((answer.member, &said.leader), (MemberId(2), &None), "{servers:?}");
    }
    let nobody = said(&Stand::new(&[]), None).await;
    assert!(matches!(nobody.fact, MetadataFact::NotAsked), "{nobody:?}");
    let said = said(&Stand::new(&[("a", Refuses), ("b", Refuses)]), Some("b")).await;
    let MetadataFact::Unreachable(why) = &said.fact else { panic!("{said:?}") };
    assert_eq!(why, "a doesn't respond; b doesn't respond");
}

#[tokio::test]
async fn the_leader_changes_the_group_whoever_is_asked_before() {
    let servers = Stand::new(&[("a", Manner::Follows), ("b", Manner::Refuses), ("c", Manner::Leads)]);
    let change = MembersChange::Remove { member: MemberId(1) };
    change_members(&servers, &access(), &servers.addresses(), None, &change).await.expect("done");
    servers.asked.lock().clear();
    change_members(&servers, &access(), &servers.addresses(), Some("c"), &change).await.expect("done");
    assert_eq!(*servers.asked.lock(), ["c"]);
    let servers = Stand::new(&[("a", Manner::Follows)]);
    let error = change_members(&servers, &access(), &servers.addresses(), None, &change).await;
    assert!(error.expect_err("no leader").to_string().contains("none of them is the leader"));
}
