//! Lists of all hosts as one: in the order of ids, which is pool by pool, so a page asks the few hosts whose pools come next.
//! A list is whole or an error: with a host missing, what it has would look gone.

use std::{fmt, str::FromStr};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use tonic::{Request, Response, Status};

use super::{
    Router, again,
    controller::{pool_of_snapshot, pool_of_volume},
    split,
};
use crate::{
    csi::{Member, fields, status::status},
    id::{PoolId, SnapshotId, VolumeId},
    proto::{
        ControllerListVolumeHealthRequest, ControllerListVolumeHealthResponse, ListSnapshotsRequest,
        ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, VolumeHealth,
        list_snapshots_response, list_volumes_response,
    },
};

/// Pools whose entries are asked for at a time: where a page is short most of what more would bring is thrown away.
const AHEAD: usize = 4;
const AHEAD_OF_ALL: usize = 32;

/// What a host answers: entries, and the token of what follows.
type Page<E> = BoxFuture<'static, Result<(Vec<E>, String), Status>>;

/// One kind of list.
#[derive(Clone, Copy)]
struct Kind<Id, E> {
    /// The id that an entry is ordered by.
    id: fn(&E) -> Option<Id>,
    /// The pool of an id.
    pool: fn(&Id) -> PoolId,
    /// What comes before every id of a pool.
    before: fn(PoolId) -> Id,
    /// Asks for so many entries after a token, with what came beside the call.
    ask: fn(Member, Request<()>, String, i32) -> Page<E>,
}

impl<Id, E> Kind<Id, E>
where
    Id: Ord + Copy + FromStr + fmt::Display + Send + Sync + 'static,
    E: Send + 'static,
{
    /// One page of the list of all hosts, and the token of the next one.
    async fn page(
        &self,
        router: &Router,
        beside: &Request<()>,
        max_entries: i32,
        token: &str,
    ) -> Result<(Vec<E>, String), Status> {
        let (after, limit) = fields::page::<Id>(max_entries, token).map_err(status)?;
        let view = router.view();
        // One more than is asked for says whether there is more.
        let wanted = limit + 1;
        let mut asked = Vec::new();
        for (pool, host) in view.pools().map_err(status)? {
            let token = match after {
                Some(after) if (self.pool)(&after) > pool => continue,
                Some(after) if (self.pool)(&after) == pool => after,
                _ => (self.before)(pool),
            };
            let member = host.reach().cloned().map_err(status)?;
            asked.push(self.of_pool(member, again(beside, ()), pool, token, wanted));
        }
        let ahead = if max_entries == 0 { AHEAD_OF_ALL } else { AHEAD };
        let mut parts = stream::iter(asked).buffered(ahead);
        let mut entries = Vec::new();
        while entries.len() < wanted
            && let Some(part) = parts.next().await
        {
            entries.extend(part?);
        }
        if entries.len() <= limit {
            return Ok((entries, String::new()));
        }
        entries.truncate(limit);
        let next = entries.last().and_then(self.id).map(|id| id.to_string());
        Ok((entries, next.unwrap_or_default()))
    }

    /// Up to so many entries of one pool. Its host lists its other pools too, behind this one.
    fn of_pool(
        &self,
        member: Member,
        beside: Request<()>,
        pool: PoolId,
        mut token: Id,
        wanted: usize,
    ) -> BoxFuture<'static, Result<Vec<E>, Status>> {
        let Self { id, pool: pool_of, ask, .. } = *self;
        async move {
            let mut entries = Vec::new();
            loop {
                // None at all asks for all.
                let count = i32::try_from(wanted - entries.len()).unwrap_or(0);
                let (page, next) = ask(member.clone(), again(&beside, ()), token.to_string(), count).await?;
                let here = |entry: &E| id(entry).is_some_and(|id| pool_of(&id) == pool);
                let before = entries.len();
                let whole = page.iter().all(here);
                entries.extend(page.into_iter().take_while(here));
                let more = whole && !next.is_empty() && entries.len() > before && entries.len() < wanted;
                match entries.last().and_then(id).filter(|_| more) {
                    Some(last) => token = last,
                    None => return Ok(entries),
                }
            }
        }
        .boxed()
    }
}

const fn first_volume(pool: PoolId) -> VolumeId {
    *VolumeId::all_of(pool).start()
}

const fn first_snapshot(pool: PoolId) -> SnapshotId {
    *SnapshotId::all_of(pool).start()
}

pub(super) async fn volumes(
    router: &Router,
    request: Request<ListVolumesRequest>,
) -> Result<Response<ListVolumesResponse>, Status> {
    let kind = Kind {
        id: |entry: &list_volumes_response::Entry| entry.volume.as_ref()?.volume_id.parse().ok(),
        pool: |id: &VolumeId| id.pool,
        before: first_volume,
        ask: |member, beside, starting_token, max_entries| {
            async move {
                let request = ListVolumesRequest { max_entries, starting_token };
                let answer = member.controller.list_volumes(again(&beside, request)).await?.into_inner();
                Ok((answer.entries, answer.next_token))
            }
            .boxed()
        },
    };
    let (beside, ListVolumesRequest { max_entries, starting_token }) = split(request);
    let (entries, next_token) = kind.page(router, &beside, max_entries, &starting_token).await?;
    Ok(Response::new(ListVolumesResponse { entries, next_token }))
}

pub(super) async fn health(
    router: &Router,
    request: Request<ControllerListVolumeHealthRequest>,
) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
    let kind = Kind {
        id: |entry: &VolumeHealth| entry.volume_id.parse().ok(),
        pool: |id: &VolumeId| id.pool,
        before: first_volume,
        ask: |member, beside, starting_token, max_entries| {
            async move {
                let request = ControllerListVolumeHealthRequest {
                    max_entries,
                    starting_token,
                    ..ControllerListVolumeHealthRequest::default()
                };
                let answer = member.controller.controller_list_volume_health(again(&beside, request)).await?;
                let answer = answer.into_inner();
                Ok((answer.entries, answer.next_token))
            }
            .boxed()
        },
    };
    let (beside, request) = split(request);
    let (entries, next_token) =
        kind.page(router, &beside, request.max_entries, &request.starting_token).await?;
    Ok(Response::new(ControllerListVolumeHealthResponse { entries, next_token }))
}

pub(super) async fn snapshots(
    router: &Router,
    request: Request<ListSnapshotsRequest>,
) -> Result<Response<ListSnapshotsResponse>, Status> {
    let (id, source) = (&request.get_ref().snapshot_id, &request.get_ref().source_volume_id);
    // What is asked of one snapshot or volume, its owner knows.
    let one = match (id.as_str(), source.as_str()) {
        ("", "") => None,
        ("", source) => Some(pool_of_volume(source)),
        (id, _) => Some(pool_of_snapshot(id)),
    };
    if let Some(pool) = one {
        if let Some(pool) = pool
            && router.view().owner(pool).map_err(status)?.is_none()
        {
            // It may be that of a host which has not been met yet.
            router.view().check_complete().map_err(status)?;
        }
        return router.owner(pool)?.controller.list_snapshots(request).await;
    }
    let kind = Kind {
        id: |entry: &list_snapshots_response::Entry| entry.snapshot.as_ref()?.snapshot_id.parse().ok(),
        pool: |id: &SnapshotId| id.pool,
        before: first_snapshot,
        ask: |member, beside, starting_token, max_entries| {
            async move {
                let request =
                    ListSnapshotsRequest { max_entries, starting_token, ..ListSnapshotsRequest::default() };
                let answer = member.controller.list_snapshots(again(&beside, request)).await?.into_inner();
                Ok((answer.entries, answer.next_token))
            }
            .boxed()
        },
    };
    let (beside, request) = split(request);
    let (entries, next_token) =
        kind.page(router, &beside, request.max_entries, &request.starting_token).await?;
    Ok(Response::new(ListSnapshotsResponse { entries, next_token }))
}
