"""Dangerous changes to the code that protects patients, and the tests that must fail when one is made.

Each is a mistake that somebody could make, or commit on purpose, without any output looking wrong. Its text must occur
exactly once in its file, so that an entry which the code has outgrown is noticed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One change that must not go unnoticed.

    Attributes:
        name: what it does, in words.
        file: the source file, from the root of the repository.
        old: text of it, which must occur exactly once.
        new: what stands in its place.
        tests: files or test ids of which one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """Return the source with the change made.

        Raises:
            ValueError: the text does not occur exactly once.
        """
        found = source.count(self.old)
        if found != 1 or self.old == self.new:
            raise ValueError(f"the text of mutation {self.name!r} must occur once in {self.file}, got {found} times")
        return source.replace(self.old, self.new)


_ATTACKS = "tests/attacks"
_PRIVACY = "tests/unit/common/privacy"
_SECAGG = "tests/unit/common/secagg"
_CONTRIBUTION = "tests/unit/client/test_contribution.py"
_TRAINING = "tests/unit/client/test_training.py"
_RECORD_GRADIENTS = "tests/unit/client/test_per_record_gradients.py"
_AGENT = "tests/unit/client/test_agent.py"
_LEDGER = "tests/unit/client/ledger/test_ledger.py"
_TREE = "tests/unit/common/evaluation/test_tree.py"
_ROUNDS = "tests/unit/server/test_rounds.py"
_FULL = f"{_ATTACKS}/test_lies_about_full_cohorts.py"
_MODEL = "tests/protocol/test_two_exchanges_model.py"
_RANDOM_RUNS = "tests/protocol/test_random_runs.py::test_the_sum_is_that_of_those_who_submitted_whoever_vanishes"


_SUMS = "tests/unit/common/proved_sums"
_SUM_LIES = f"{_ATTACKS}/test_lies_about_sums.py"
_CHOOSING = f"{_ATTACKS}/test_server_that_chooses_the_model.py"
_LONG_SUMS = "tests/unit/server/test_garbage_ends_no_run.py"
_NORM_BOUND = "tests/unit/common/run/test_norm_bound.py"
_PROVED_RUN = "tests/unit/server/test_proved_run.py"

_SUM_MUTATIONS = (
    Mutation(
        "a hospital forgets that it has opened a sum",
        "client/proved_model.py",
        "lineage=has_opened(self._held.lineage, group), opened=opened))",
        "lineage=self._held.lineage, opened=None))",
        (_CHOOSING,),
    ),
    Mutation(
        "an honest hospital does not clip its change to the run's bound",
        "common/privacy/mechanism.py",
        "layout.encode(clipped(change, self.longest / tail.weight + self.longest_per_weight), tail",
        "layout.encode(change, tail",
        (_NORM_BOUND,),
    ),
    Mutation(
        "a change is clipped as if every weight were one",
        "common/privacy/mechanism.py",
        "clipped(change, self.longest / tail.weight +",
        "clipped(change, self.longest +",
        (_NORM_BOUND,),
    ),
    Mutation(
        "a hospital follows a sum of any length",
        "client/proved_model.py",
        "        check_norm(opened.description, layout, summed, proved.total, place)\n",
        "",
        (f"{_LONG_SUMS}::test_a_hospital_does_not_follow_a_sum_that_is_too_long",),
    ),
    Mutation(
        "the audit takes a sum of any length",
        "deploy/audit/sums.py",
        "        check_norm(description, layout, of, proved.total, here)\n",
        "",
        (f"{_LONG_SUMS}::test_an_audit_finds_a_sum_that_is_too_long",),
    ),
    Mutation(
        "the server takes a sum of any length",
        "server/rounds.py",
        "check_norm(self._description, layout, of, proved.total, ",
        "str((layout, of, proved.total)); (",
        (_LONG_SUMS,),
    ),
    Mutation(
        "a spoilt sum says nothing of who was in it",
        "server/suspects.py",
        "        self._spoilt.append(group)\n",
        "        self._spoilt.append(frozenset(self._order) | group)\n",
        ("tests/unit/server/test_suspects.py",),
    ),
    Mutation(
        "spoilt sums end a run after five",
        "server/run.py",
        "and (is_new or self._left_out(able))):\n",
        "and (is_new or not self._left_out(able))):\n",
        (f"{_LONG_SUMS}::test_more_spoilt_sums_than_may_fail_in_a_row_do_not_end_a_run",),
    ),
    Mutation(
        "a hospital takes any bound on changes",
        "client/policy.py",
        "    if most and not 0 < bound <= most:\n",
        "    if most and not 0 <= bound:\n",
        ("tests/unit/client/test_norm_bound_policy.py",),
    ),
    Mutation(
        "a hospital takes a model that came with a request, in a run that proves its sums",
        "client/agent.py",
        "        if isinstance(request, ProvedMaskRequest) != (run.proved is not None):\n",
        "        if isinstance(request, ProvedMaskRequest) and run.proved is None:\n",
        (_CHOOSING,),
    ),
    Mutation(
        "the model's own hash is not compared with the one that is computed",
        "client/proved_model.py",
        "        if hash_model(held.now.model) != terms.model_hash:\n",
        "        if not terms.model_hash:\n",
        (_CHOOSING,),
    ),
    Mutation(
        "a late joiner is given any model and state",
        "client/proved_model.py",
        "        if before.hash != signed:\n",
        "        if not signed:\n",
        (_CHOOSING,),
    ),
    Mutation(
        "survivors are signed without a look at their commitments",
        "client/agent.py",
        "            run.groups[round_number] = self._group_to_sign(run, run.proved, request, survivors)\n",
        "            pass\n",
        (_CHOOSING,),
    ),
    Mutation(
        "the audit takes a step that no proved sum gave",
        "deploy/audit/sums.py",
        '        _require(same, place, "its model is another',
        '        _require(same or True, place, "its model is another',
        (f"{_PROVED_RUN}::test_an_audit_finds_a_step_that_does_not_follow",),
    ),
    Mutation(
        "the mean is taken with the weight that is not proved",
        "common/run/vector.py",
        "        total_weight = self.proved_weight(elements) if self.proves_sums else int(counts[0])\n",
        "        total_weight = int(counts[0])\n",
        ("tests/unit/common/run/test_proved_vector.py",),
    ),
    Mutation(
        "ρ is as long as if the sum of all ρ were secret",
        "common/proved_sums/estimate.py",
        "        return bool(values**length >= needed << length)\n",
        "        return bool(values**length >= needed)\n",
        (f"{_SUMS}/test_estimate.py::test_two_honest_hospitals_keep_enough_entropy_once_their_sum_is_known",),
    ),
    Mutation(
        "ρ may be shorter than what hides a vector",
        "common/proved_sums/parameters.py",
        "            and self.randomness >= randomness_length(lattice.rows, lattice.modulus, largest),\n",
        "            and self.randomness >= lattice.degree,\n",
        (f"{_SUMS}/test_parameters.py",),
    ),
    Mutation(
        "ρ is drawn from too few values",
        "common/proved_sums/commitment.py",
        "    values = 2 * parameters.largest_randomness + 1\n",
        "    values = parameters.largest_randomness + 1\n",
        (f"{_SUMS}/test_commitment.py",),
    ),
    Mutation(
        "words that are too large are taken into ρ by their remainder",
        "common/proved_sums/commitment.py",
        "np.concatenate([kept, words[words < values]])",
        "np.concatenate([kept, words % values])",
        (f"{_SUMS}/test_commitment.py",),
    ),
    Mutation(
        "a problem that is too easy is taken",
        "common/proved_sums/parameters.py",
        "self.root_hermite_factor <= MOST_ROOT_HERMITE_FACTOR,",
        "self.root_hermite_factor <= 2 * MOST_ROOT_HERMITE_FACTOR,",
        (f"{_SUMS}/test_parameters.py",),
    ),
    Mutation(
        "the estimate counts breaks half as long as those of a colluder",
        "common/proved_sums/parameters.py",
        "return 4 * self.bound * math.sqrt(self.length)",
        "return self.bound * math.sqrt(self.length) / 64",
        (f"{_SUMS}/test_parameters.py", f"{_SUMS}/test_estimate.py"),
    ),
    Mutation(
        "differences of two ρ need not be units",
        "common/proved_sums/parameters.py",
        "lattice.modulus % 8 == _SPLITTING and 2 * (2 * largest) ** 2 < lattice.modulus,",
        "lattice.modulus % 8 == _SPLITTING,",
        (f"{_SUMS}/test_parameters.py",),
    ),
    Mutation(
        "the commitments are not added up",
        "common/proved_sums/proof.py",
        "    if open_sum(matrix_key(run, parameters), parameters, centred) != add(parameters, values):\n",
        "    if len(open_sum(matrix_key(run, parameters), parameters, centred)) != len(add(parameters, values)):\n",
        (_SUM_LIES,),
    ),
    Mutation(
        "ρ is no part of what is proved",
        "common/proved_sums/commitment.py",
        "(total[: parameters.entries], total[parameters.entries :]))",
        "(total[: parameters.entries],))",
        (_SUM_LIES, f"{_SUMS}/test_commitment.py"),
    ),
    Mutation(
        "an entry of -R/2 is taken",
        "common/proved_sums/proof.py",
        "    if int(centred.min()) < -parameters.bound:\n",
        "    if int(centred.min()) < -parameters.bound - 1:\n",
        (f"{_SUM_LIES}::test_an_entry_beyond_the_bound_is_refused_before_anything_is_computed",),
    ),
    Mutation(
        "a survivor's commitment may be missing",
        "common/proved_sums/proof.py",
        '        raise MissingCommitmentError(place, "there must be a commitment of each survivor", missing)\n',
        "        values[missing] = [0] * parameters.lattice.rows\n",
        (f"{_SUM_LIES}::test_a_sum_without_one_survivor_is_refused_even_with_the_commitments_that_fit_it",),
    ),
    Mutation(
        "a commitment need not open the hash that was signed first",
        "common/secagg/sealed_commitment.py",
        "    if commitment_hash(run, view, opened.hospital, opened.commitment) != promised:\n",
        "    if not promised:\n",
        (f"{_SUM_LIES}::test_the_rushing_colluder_is_refused_because_its_hash_came_first",),
    ),
    Mutation(
        "the hash of a commitment does not name its owner",
        "common/secagg/sealed_commitment.py",
        "    common = replace(view, hospital=hospital, vector_hash=",
        '    common = replace(view, hospital="hospital", vector_hash=',
        (
            f"{_SUM_LIES}::test_one_who_copies_anothers_commitment_is_found_out_because_the_name_is_in_the_hash",
            f"{_SUM_LIES}::test_a_hash_that_was_signed_for_another_view_is_no_hash_of_this_one",
        ),
    ),
    Mutation(
        "a commitment travels in the clear",
        "common/secagg/sealed_commitment.py",
        "        return stream(key, 0).update(value)\n",
        "        return value\n",
        (_SUM_LIES,),
    ),
    Mutation(
        "a sealed commitment is not under its hospital's signature",
        "common/secagg/masked_input.py",
        'bind("vector") if sealed is None else bind("vector", sealed.ciphertext)',
        'bind("vector") if sealed is None else bind("vector", bytes(len(sealed.ciphertext)))',
        (f"{_SUM_LIES}::test_a_sealed_commitment_that_is_altered_on_its_way_is_refused_with_the_vector",),
    ),
    Mutation(
        "a hash of a commitment that nobody signed is kept",
        "common/proved_sums/proof.py",
        "    if not is_signed(run.roster[signed.hospital], signed.signature, signed_part(run, whole)):\n",
        "    if not signed_part(run, whole):\n",
        (_SUM_LIES,),
    ),
    Mutation(
        "limbs are cut so wide that rounding is no longer proven to be exact",
        "common/proved_sums/ring.py",
        "LIMB_BITS_OF_A = 11\n",
        "LIMB_BITS_OF_A = 16\n",
        (f"{_SUMS}/test_ring.py",),
    ),
    Mutation(
        "more is added up than rounding is proven for",
        "common/proved_sums/ring.py",
        "GROUP_ENTRIES = 32_768\n",
        "GROUP_ENTRIES = 65_536\n",
        (f"{_SUMS}/test_ring.py",),
    ),
    Mutation(
        "the spectra of one run's matrix are kept for another's",
        "common/proved_sums/ring.py",
        "    return _kept_factors(key, lattice, counts) if",
        "    return _kept_factors(bytes(32), lattice, counts) if",
        (f"{_SUMS}/test_ring.py",),
    ),
    Mutation(
        "a round that was opened is passed over in silence",
        "common/proved_sums/lineage.py",
        "    if lineage.opened is not None:\n",
        "    if lineage.opened is not None and not claimed:\n",
        (f"{_SUMS}/test_lineage.py",),
    ),
    Mutation(
        "any number of rounds may be void",
        "common/proved_sums/lineage.py",
        "    if len(rounds) > lineage.most_void_rounds:\n",
        "    if not rounds:\n",
        (f"{_SUMS}/test_lineage.py",),
    ),
    Mutation(
        "one cheat can void more rounds than a run allows by default",
        "common/config.py",
        "        return max(len(self.roster) - 1, 0) if most",
        "        return max(len(self.roster) - 2, 0) if most",
        ("tests/unit/common/test_config.py",),
    ),
    Mutation(
        "a hospital keeps the limit on void rounds of another roster",
        "client/proved_model.py",
        "run=parameters, most_void_rounds=description.most_void_rounds)",
        "run=parameters)",
        (f"{_PROVED_RUN}::test_how_many_rounds_may_be_void_follows_the_roster_while_a_run_goes_on",),
    ),
    Mutation(
        "a late joiner takes a state that one hospital has signed",
        "common/proved_sums/lineage.py",
        "run.threshold(len(run.roster))",
        "1",
        (f"{_SUMS}/test_lineage.py",),
    ),
    Mutation(
        "a late joiner takes a state of a round that is not over",
        "common/proved_sums/lineage.py",
        "    if signed_round >= round_number:\n",
        "    if not signed_round:\n",
        (f"{_SUMS}/test_lineage.py",),
    ),
    Mutation(
        "a part of the mean of features may be of any length",
        "common/run/next_model.py",
        "            longest = mechanism.longest_mean(run, parameters)\n",
        "            longest = None\n",
        (_NORM_BOUND,),
    ),
    Mutation(
        "a hospital does not clip its part of the mean of features",
        "common/privacy/mechanism.py",
        "MEAN_NORM, multiplier, longest, MEAN_NORM)",
        "MEAN_NORM, multiplier)",
        (_NORM_BOUND,),
    ),
    Mutation(
        "a hospital is put back behind a sum that it has followed",
        "client/proved_model.py",
        "        if round_number < newest:\n",
        "        if round_number < 0:\n",
        (f"{_CHOOSING}::test_a_hospital_that_has_followed_a_later_sum_is_not_put_back",),
    ),
    Mutation(
        "a hospital whose model was removed forgets which rounds are void",
        "client/proved_model.py",
        "most, bytes(32), known) if held",
        "most, bytes(32)) if held",
        (f"{_CHOOSING}::test_a_hospital_whose_model_was_removed_still_knows_which_rounds_are_void",),
    ),
    Mutation(
        "a hospital that begins from the seed again forgets which rounds are void",
        "client/proved_model.py",
        "replace(begun, void_rounds=self._remembered.void_rounds)",
        "begun",
        (f"{_CHOOSING}::test_nor_does_it_forget_them_where_it_begins_from_the_seed_again",),
    ),
    Mutation(
        "a hospital forgets a sum that it has seen fail",
        "client/agent.py",
        "                run.proved.failed(round_number)\n",
        "                pass\n",
        (f"{_ATTACKS}/test_lies_about_disputes_to_agents.py",),
    ),
    Mutation(
        "the hash of a model does not cover the optimiser's state",
        "common/proved_sums/lineage.py",
        "    for name in sorted(state):\n",
        "    for name in sorted(state)[:0]:\n",
        (f"{_SUMS}/test_lineage.py",),
    ),
)

_SECAGG_MUTATIONS = (
    Mutation(
        "pairwise masks are not bound to what the round asks for",
        "common/secagg/keys.py",
        'return bind("pairwise mask", context, cohort_hash, request_hash, low',
        'return bind("pairwise mask", context, cohort_hash, low',
        (f"{_SECAGG}/test_keys.py", f"{_ATTACKS}/test_lies_about_terms.py"),
    ),
    Mutation(
        "pairwise masks are not bound to the cohort",
        "common/secagg/keys.py",
        'return bind("pairwise mask", context, cohort_hash, request_hash, low',
        'return bind("pairwise mask", context, request_hash, low',
        (f"{_SECAGG}/test_keys.py",),
    ),
    Mutation(
        "both segments of a vector get the same pairwise mask",
        "common/secagg/keys.py",
        "low.encode(), high.encode(), segment.encode())",
        "low.encode(), high.encode())",
        ("tests/protocol/test_segments.py", f"{_SECAGG}/test_keys.py"),
    ),
    Mutation(
        "a hospital's own mask is the same in every round",
        "common/secagg/keys.py",
        'return bind("self mask", context, hospital.encode(), segment.encode())',
        'return bind("self mask", hospital.encode(), segment.encode())',
        (f"{_SECAGG}/test_keys.py", "tests/protocol/test_known_answer.py"),
    ),
    Mutation(
        "a signature that does not verify counts",
        "common/secagg/keys.py",
        "    except InvalidSignature:\n        return False\n",
        "    except InvalidSignature:\n        return True\n",
        (f"{_ATTACKS}/test_lies_about_survivors.py", f"{_ATTACKS}/test_lies_about_keys.py"),
    ),
    Mutation(
        "keys of low order are accepted",
        "common/secagg/keys.py",
        'return int.from_bytes(public, "little") in _LOW_ORDER',
        "return False",
        (f"{_SECAGG}/test_keys.py", f"{_ATTACKS}/test_lies_about_keys.py"),
    ),
    Mutation(
        "bound parts run into each other, without their lengths",
        "common/secagg/binding.py",
        'pieces += (len(part).to_bytes(_LENGTH_BYTES, "big"), part)',
        "pieces += (part,)",
        (f"{_SECAGG}/test_binding.py",),
    ),
    Mutation(
        "a round's keys and signatures are not bound to its number",
        "common/secagg/binding.py",
        'run.config_hash, round_number.to_bytes(8, "big"))',
        "run.config_hash)",
        (f"{_SECAGG}/test_binding.py",),
    ),
    Mutation(
        "the hash of a round's request does not depend on its terms",
        "common/secagg/binding.py",
        'return bound_hash("request", terms)',
        'return bound_hash("request", terms[:0])',
        ("tests/unit/common/run/test_round_terms.py", f"{_ATTACKS}/test_lies_about_terms.py"),
    ),
    Mutation(
        "a vector leaves without the hospital's own mask",
        "common/secagg/masked_input.py",
        "masks = [Mask(derive(state.self_mask_seed, self_mask_info(context, keys.hospital, segment)))]",
        "masks: list[Mask] = []",
        (_RANDOM_RUNS,),
    ),
    Mutation(
        "a cohort below the threshold is masked for",
        "common/secagg/masked_input.py",
        "if len(request.cohort) < state.directory.threshold:",
        "if not request.cohort:",
        (f"{_ATTACKS}/test_lies_about_cohorts.py",),
    ),
    Mutation(
        "shares are not compared with what their dealer committed to",
        "common/secagg/masked_input.py",
        "    if is_directed and is_promised:\n",
        "    if is_directed:\n",
        (f"{_ATTACKS}/test_bad_shares.py",),
    ),
    Mutation(
        "a share meant for somebody else is taken",
        "common/secagg/masked_input.py",
        "is_directed = plaintext == packed",
        "is_directed = True",
        (f"{_ATTACKS}/test_bad_shares.py",),
    ),
    Mutation(
        "the server adds vectors made for other terms",
        "common/secagg/masked_input.py",
        "if message.request_hash != self.request_hash:",
        "if len(message.request_hash) != len(self.request_hash):",
        (f"{_ATTACKS}/test_lies_about_cohorts.py",),
    ),
    Mutation(
        "survivors below the threshold are signed",
        "common/secagg/consistency_check.py",
        "if len(survivors) < state.threshold:",
        "if not survivors:",
        (f"{_ATTACKS}/test_lies_about_survivors.py",),
    ),
    Mutation(
        "a hospital may be both dropped and alive",
        "common/secagg/consistency_check.py",
        "for hospital in sorted(survivors & dropped):",
        "for hospital in sorted(survivors & dropped - cohort):",
        (f"{_ATTACKS}/test_lies_about_survivors.py",),
    ),
    Mutation(
        "shares are revealed for other survivors than were signed",
        "common/secagg/consistency_check.py",
        "if (request.survivors, request.dropped) != (state.survivors, state.dropped):",
        "if not request.survivors:",
        (f"{_ATTACKS}/test_lies_about_survivors.py",),
    ),
    Mutation(
        "shares are revealed without enough signatures",
        "common/secagg/consistency_check.py",
        "    _require_enough(len(request.signatures), state.masked.threshold, place)\n",
        "",
        (f"{_ATTACKS}/test_lies_about_survivors.py",),
    ),
    Mutation(
        "a signature over other terms counts as agreement",
        "common/secagg/consistency_check.py",
        "if message.request_hash != view.request_hash:",
        "if len(message.request_hash) != len(view.request_hash):",
        (f"{_ATTACKS}/test_lies_about_terms.py", f"{_ATTACKS}/test_lies_about_survivors.py"),
    ),
    Mutation(
        "both kinds of a dropped hospital's shares are revealed",
        "common/secagg/unmasking.py",
        "for owner in owners if owner in survivors\n",
        "for owner in owners\n",
        (_RANDOM_RUNS,),
    ),
    Mutation(
        "the active threshold counts no colluders",
        "common/secagg/parameters.py",
        "colluders = (self.members - 1) // 3",
        "colluders = 0",
        (f"{_SECAGG}/test_parameters.py",),
    ),
    Mutation(
        "shares can be rebuilt by one fewer than the threshold",
        "common/secagg/shamir.py",
        "for _ in range(threshold - 1)]",
        "for _ in range(threshold - 2)]",
        (f"{_SECAGG}/test_shamir.py",),
    ),
    Mutation(
        "opening the sum over everybody leaves the slot of signing survivors open",
        "common/secagg/answered_rounds.py",
        "= {Phase.FULL_UNMASKING: Phase.CONSISTENCY_CHECK}",
        "= {}",
        (_MODEL, f"{_ATTACKS}/test_two_endings_of_a_round.py"),
    ),
    Mutation(
        "opening the sum over everybody takes the slot of unmasking instead of that of signing",
        "common/secagg/answered_rounds.py",
        "= {Phase.FULL_UNMASKING: Phase.CONSISTENCY_CHECK}",
        "= {Phase.FULL_UNMASKING: Phase.UNMASKING}",
        (_MODEL, f"{_ATTACKS}/test_two_endings_of_a_round.py"),
    ),
    Mutation(
        "an opening is not noted before it is answered",
        "client/agent.py",
        "        self._answered.advance(run.parameters.run_id, round_number, Phase.FULL_UNMASKING)\n",
        "",
        (f"{_ATTACKS}/test_two_endings_of_a_round.py",),
    ),
    Mutation(
        "a threshold of views opens the sum over everybody",
        "common/secagg/full_unmasking.py",
        "    for missing in sorted(set(state.cohort) - signers):\n",
        "    for missing in sorted(set(state.cohort) - signers)[len(state.cohort) - state.threshold :]:\n",
        (f"{_FULL}::test_one_view_fewer_than_the_cohort_is_refused",),
    ),
    Mutation(
        "views are taken as the server states them",
        "common/secagg/full_unmasking.py",
        "        verify_view(state.run, signed.within(state.view), place)\n",
        "",
        (f"{_FULL}::test_a_peer_that_was_shown_anything_else_is_found_out",),
    ),
    Mutation(
        "the views of a full sum are not verified",
        "common/secagg/full_unmasking.py",
        "    verify_views(state, request, Place(state.hospital, state.round_number, Phase.FULL_UNMASKING))\n",
        "",
        (_FULL,),
    ),
    Mutation(
        "whoever opens the sum over everybody reveals shares of a masking key",
        "common/secagg/full_unmasking.py",
        "state.run.run_id, state.round_number, state.cohort, (), ())",
        "state.run.run_id, state.round_number, state.cohort[:-1], (), ())",
        (f"{_FULL}::test_a_hospital_reveals_shares_of_everyones_own_mask_and_of_no_masking_key",),
    ),
    Mutation(
        "a view's signature does not cover the request",
        "common/secagg/masked_input.py",
        'unsigned = encode(replace(message, signature=b""))',
        'unsigned = encode(replace(message, request_hash=bytes(32), signature=b""))',
        (f"{_FULL}::test_a_peer_that_was_shown_anything_else_is_found_out",),
    ),
    Mutation(
        "a commitment that nobody can check is accepted",
        "common/secagg/masked_input.py",
        "    if len(message.commitment) != promised:\n",
        "    if len(message.commitment) > len(message.vector_hash):\n",
        (_FULL,),
    ),
    Mutation(
        "the server adds a vector that is not the one its hospital signed",
        "common/secagg/masked_input.py",
        "        if message.vector_hash != expected:\n",
        "        if not message.vector_hash:\n",
        (_FULL,),
    ),
    Mutation(
        "the audit takes views that differ",
        "deploy/audit/record.py",
        "_require(alike == view, place,",
        "_require(alike.run_id == view.run_id, place,",
        ("tests/unit/deploy/audit/test_verify.py::test_views_that_differ_are_found",),
    ),
    Mutation(
        "the audit takes a sum over less than the cohort that signed",
        "deploy/audit/record.py",
        "_require(first.cohort_hash == everybody, place,",
        "_require(len(first.cohort_hash) == len(everybody), place,",
        ("tests/unit/deploy/audit/test_verify.py::test_a_sum_over_less_than_the_cohort_that_signed_is_found",),
    ),
    Mutation(
        "a phase of a round is answered twice",
        "common/secagg/answered_rounds.py",
        "if last is not None and round_number <= last:",
        "if last is not None and round_number < last:",
        (f"{_ATTACKS}/test_answering_twice.py",),
    ),
)

_KEYS_MUTATIONS = (
    Mutation(
        "keys that nobody on the roster has signed are taken",
        "common/secagg/advertise_keys.py",
        "if not is_signed(message.identity, message.signature, signed_part(run, message)):",
        "if False:",
        (f"{_ATTACKS}/test_lies_about_keys.py",),
    ),
    Mutation(
        "keys may be signed by another identity than the roster's",
        "common/secagg/advertise_keys.py",
        "if message.identity != run.roster[sender]:",
        "if False:",
        (f"{_ATTACKS}/test_lies_about_keys.py",),
    ),
    Mutation(
        "a public key of low order is taken",
        "common/secagg/advertise_keys.py",
        "if is_low_order(key):",
        "if False:",
        (f"{_ATTACKS}/test_lies_about_keys.py",),
    ),
    Mutation(
        "the server lowers the threshold of a directory",
        "common/secagg/share_keys.py",
        "if not rule <= directory.threshold <= len(directory.keys):",
        "if not directory.threshold <= len(directory.keys):",
        (f"{_ATTACKS}/test_lies_about_cohorts.py",),
    ),
    Mutation(
        "a directory holds other keys of the hospital than it advertised",
        "common/secagg/share_keys.py",
        "if by_hospital.pop(keys.hospital) != own:",
        "if by_hospital.pop(keys.hospital) is None:",
        (f"{_ATTACKS}/test_lies_about_keys.py",),
    ),
    Mutation(
        "b of a hospital is dealt so that one share fewer rebuilds it",
        "common/secagg/share_keys.py",
        "of_seed = shamir.share(self_mask_seed, graph.share_threshold, points, random)",
        "of_seed = shamir.share(self_mask_seed, graph.share_threshold - 1, points, random)",
        ("tests/protocol/test_known_answer.py",),
    ),
    Mutation(
        "a sparse graph withstands fewer colluders in a row",
        "common/secagg/neighbours.py",
        "threshold = reach + in_a_row + 2",
        "threshold = reach + 2",
        (f"{_SECAGG}/test_neighbours.py",),
    ),
    Mutation(
        "each stretch of a vector begins its masks anew",
        "common/secagg/masks.py",
        "first_block = first_element * vector.itemsize // _AES_BLOCK_BYTES",
        "first_block = 0 * first_element",
        (f"{_SECAGG}/test_masks.py", "tests/unit/common/test_mask_workers.py"),
    ),
)

_PRIVACY_MUTATIONS = (
    Mutation(
        "releases of counts are planned with half of what they cost",
        "common/privacy/gaussian.py",
        "near, far = -epsilon / mu + mu / 2, -epsilon / mu - mu / 2",
        "mu = mu / 2; near, far = -epsilon / mu + mu / 2, -epsilon / mu - mu / 2",
        (f"{_PRIVACY}/test_gaussian.py",),
    ),
    Mutation(
        "the accountant takes half of the sample rate",
        "common/privacy/accounting.py",
        "opacus_prv.PoissonSubsampledGaussianPRV(rate, noise)",
        "opacus_prv.PoissonSubsampledGaussianPRV(rate / 2, noise)",
        (
            f"{_PRIVACY}/test_accounting.py::test_epsilon_is_what_opacus_publishes",
            f"{_PRIVACY}/test_accounting.py::test_full_batches_are_the_gaussian_mechanism",
        ),
    ),
    Mutation(
        "the accountant of Rényi divergences takes half of the sample rate",
        "common/privacy/accounting.py",
        "q=sample_rate, noise_multiplier=noise_multiplier, steps=1,",
        "q=sample_rate / 2, noise_multiplier=noise_multiplier, steps=1,",
        (f"{_PRIVACY}/test_accounting.py::test_epsilon_by_rdp_is_what_tensorflow_privacy_publishes",),
    ),
    Mutation(
        "equal events of a history count once",
        "common/privacy/accounting.py",
        "steps[event.noise_multiplier, event.sample_rate, event.group] += event.steps",
        "steps[event.noise_multiplier, event.sample_rate, event.group] = event.steps",
        (f"{_PRIVACY}/test_accounting.py::test_order_and_grouping_of_events_make_no_difference",),
    ),
    Mutation(
        "a group of records costs what one record does",
        "common/privacy/accounting.py",
        "grouped = replace(event, group=event.group * units)",
        "grouped = replace(event, group=event.group)",
        (f"{_PRIVACY}/test_budget.py", f"{_PRIVACY}/test_accounting.py::test_groups_of_groups_are_groups"),
    ),
    Mutation(
        "the distance to a Gaussian is not paid for",
        "common/privacy/accounting.py",
        "return lower, upper + 2 * approximation",
        "return lower, upper",
        (f"{_PRIVACY}/test_accounting.py::test_the_distance_to_a_gaussian_is_paid_for_in_epsilon_and_delta",),
    ),
    Mutation(
        "the noise counts on hospitals that may drop out",
        "common/privacy/distributed.py",
        "remaining = hospitals - colluders - tolerated_dropouts",
        "remaining = hospitals - colluders",
        (f"{_PRIVACY}/test_distributed.py",),
    ),
    Mutation(
        "the noise counts on hospitals that may collude",
        "common/privacy/distributed.py",
        "remaining = hospitals - colluders - tolerated_dropouts",
        "remaining = hospitals - tolerated_dropouts",
        (f"{_PRIVACY}/test_distributed.py",),
    ),
    Mutation(
        "whole numbers beyond the clipping bound are added",
        "common/privacy/distributed.py",
        "& (squares <= self.norm_bound**2)",
        "& (squares >= 0)",
        (f"{_PRIVACY}/test_distributed.py",),
    ),
    Mutation(
        "gradients within the bound count twice",
        "common/privacy/distributed.py",
        "factors = np.minimum(self.norm_bound / self.max_grad_norm, room / norms)",
        "factors = np.minimum(2 * self.norm_bound / self.max_grad_norm, room / norms)",
        (f"{_PRIVACY}/test_distributed.py::test_decoding_gives_the_sum_of_clipped_gradients",),
    ),
    Mutation(
        "a share of the noise comes from a constant key",
        "common/privacy/distributed.py",
        "return discrete_gaussian.sample(self.share_variance(cohort), self.dimension, keystream)",
        "return discrete_gaussian.sample(self.share_variance(cohort), self.dimension, Keystream(bytes(32)))",
        (f"{_PRIVACY}/test_distributed.py",),
    ),
    Mutation(
        "a round is booked with more noise than the sum carries",
        "common/privacy/distributed.py",
        "MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, self.noise_multiplier, sample_rate, rounds, self.approximation",
        "MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, 2 * self.noise_multiplier, sample_rate, rounds, "
        "self.approximation",
        (f"{_PRIVACY}/test_distributed.py::test_a_round_is_booked_as_the_gaussian_it_is_bounded_by",),
    ),
    Mutation(
        "the discrete Gaussian accepts a negative zero",
        "common/privacy/discrete_gaussian.py",
        "    accepted &= ~(negative & (magnitude == 0))\n",
        "",
        (f"{_PRIVACY}/test_discrete_gaussian.py",),
    ),
    Mutation(
        "the discrete Gaussian is half as wide as it says",
        "common/privacy/discrete_gaussian.py",
        "distance = (magnitude << shift) - variance",
        "distance = (magnitude << shift) - variance // 4",
        (f"{_PRIVACY}/test_discrete_gaussian.py",),
    ),
    Mutation(
        "the noise multiplier found is one that passes the target",
        "common/privacy/calibration.py",
        "        if at_least > target_epsilon or at_most > target_epsilon:\n            too_little = middle",
        "        if at_least > 1.1 * target_epsilon:\n            too_little = middle",
        (f"{_PRIVACY}/test_calibration.py",),
    ),
    Mutation(
        "noise is made for one round of the run alone",
        "common/privacy/calibration.py",
        "schedule.steps * rounds\n",
        "schedule.steps\n",
        (f"{_PRIVACY}/test_calibration.py",),
    ),
    Mutation(
        "mode local is booked at half of its sample rate",
        "common/privacy/mechanism.py",
        "            self.noise_multiplier,\n            self.schedule.sample_rate,\n",
        "            self.noise_multiplier,\n            self.schedule.sample_rate / 2,\n",
        (f"{_PRIVACY}/test_calibration.py::test_a_round_of_mode_local_is_booked_with_the_runs_own_rate_and_steps",),
    ),
    Mutation(
        "mode distributed is booked at half of its sample rate",
        "common/privacy/distributed.py",
        "MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, self.noise_multiplier, sample_rate, rounds",
        "MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, self.noise_multiplier, sample_rate / 2, rounds",
        (f"{_PRIVACY}/test_distributed.py::test_a_round_is_booked_as_the_gaussian_it_is_bounded_by",),
    ),
    Mutation(
        "a δ at which publishing one record would do is accepted",
        "common/privacy/calibration.py",
        "if not 0 < delta < 1 / units:",
        "if not 0 < delta < 1:",
        (f"{_PRIVACY}/test_calibration.py",),
    ),
    Mutation(
        "a round is booked with fewer steps than it takes",
        "common/privacy/mechanism.py",
        "training.local_epochs * math.ceil(1 / training.sample_rate)",
        "math.ceil(1 / training.sample_rate)",
        (f"{_TRAINING}::test_the_schedule_is_what_the_ledger_books_and_knows_nothing_of_the_data",),
    ),
    Mutation(
        "a booking of a weaker adversary counts as it is",
        "common/privacy/budget.py",
        "if not booking.withstands(self.min_colluders):",
        "if not booking.withstands(0):",
        (f"{_PRIVACY}/test_budget.py",),
    ),
    Mutation(
        "a booking for each record counts as one for each patient",
        "common/privacy/budget.py",
        "if self.unit is PrivacyUnit.RECORD or booking.unit is PrivacyUnit.PATIENT:",
        "if self.unit in PrivacyUnit:",
        (f"{_PRIVACY}/test_budget.py", f"{_LEDGER}::test_rounds_for_records_are_no_rounds_for_patients"),
    ),
)

_EVALUATION_MUTATIONS = (
    Mutation(
        "an evaluation vector beyond the norm is added",
        "common/evaluation/tree.py",
        "kept: Integers = vectors * within[:, None]",
        "kept: Integers = vectors * (within | True)[:, None]",
        (f"{_TREE}::test_a_vector_beyond_the_bound_counts_as_zero",),
    ),
    Mutation(
        "more units than are stated are counted",
        "common/evaluation/tree.py",
        "if len(everything) <= stated_units:",
        "if len(everything) >= 0:",
        (f"{_TREE}::test_more_units_than_stated_are_a_fixed_subset_and_no_data_is_zero",),
    ),
    Mutation(
        "a patient counts for all records instead of their mean",
        "common/evaluation/tree.py",
        "mean = sums / sizes[:, None]",
        "mean = sums / np.ones_like(sizes)[:, None]",
        (f"{_TREE}::test_a_patients_vector_is_the_mean_of_the_records_in_whole_numbers",),
    ),
    Mutation(
        "a fresh subset of the units counts in every release",
        "common/evaluation/tree.py",
        "generator = np.random.default_rng(np.frombuffer(hashlib.sha256(seed).digest(), np.uint32))",
        "generator = np.random.default_rng()",
        (
            f"{_TREE}::test_the_same_units_count_in_every_release_of_a_run",
            f"{_TREE}::test_more_units_than_stated_are_a_fixed_subset_and_no_data_is_zero",
        ),
    ),
)

_ONE_STEP = "test_one_private_step_is_the_clipped_sum_over_the_expected_batch_plus_noise_of_the_stated_size"
_WHO = "test_who_is_in_a_batch_comes_from_the_bytes_that_are_drawn"
_BYTES = "test_sampling_and_noise_come_from_the_bytes_that_are_drawn"

_TRAINING_MUTATIONS = (
    Mutation(
        "sampling of mode distributed comes from a constant key",
        "client/training.py",
        "Schedule(plan.sample_rate, 1), Keystream(random(SEED_BYTES)))",
        "Schedule(plan.sample_rate, 1), Keystream(bytes(SEED_BYTES)))",
        (f"{_TRAINING}::{_WHO}",),
    ),
    Mutation(
        "sampling of mode local comes from a constant key, its noise does not",
        "client/training.py",
        "_poisson_batches(data, plan.unit, plan.schedule, stream)",
        "_poisson_batches(data, plan.unit, plan.schedule, Keystream(bytes(SEED_BYTES)))",
        (f"{_TRAINING}::{_WHO}",),
    ),
    Mutation(
        "noise of mode distributed comes from a constant key",
        "client/training.py",
        "trained += noise.noise_share(cohort, Keystream(random(SEED_BYTES)))",
        "trained += noise.noise_share(cohort, Keystream(bytes(SEED_BYTES)))",
        (f"{_TRAINING}::{_BYTES}",),
    ),
    Mutation(
        "sampling and noise of mode local come from a constant key",
        "client/training.py",
        "    stream = Keystream(random(SEED_BYTES))\n",
        "    stream = Keystream(bytes(SEED_BYTES))\n",
        (f"{_TRAINING}::{_BYTES}", f"{_TRAINING}::test_the_same_random_bytes_give_the_same_update_and_others_another"),
    ),
    Mutation(
        "the mean is over the real batch instead of the expected one",
        "client/training.py",
        "yield _noisy_mean(clipped_sum, deviation, expected_units, stream)",
        "yield _noisy_mean(clipped_sum, deviation, max(1, len(batch)), stream)",
        (f"{_TRAINING}::{_ONE_STEP}",),
    ),
    Mutation(
        "training of mode local adds no noise",
        "client/training.py",
        ".mul_(deviation).add_(clipped_sum)",
        ".mul_(0.0).add_(clipped_sum)",
        (f"{_TRAINING}::{_ONE_STEP}",),
    ),
    Mutation(
        "the noise of mode local is not scaled by the clipping bound",
        "client/training.py",
        "deviation = plan.noise_multiplier * plan.max_grad_norm",
        "deviation = plan.noise_multiplier",
        (f"{_TRAINING}::{_ONE_STEP}",),
    ),
    Mutation(
        "gradients are not clipped",
        "client/training.py",
        ".clamp_(max=1.0)\n",
        ".clamp_(min=1.0)\n",
        (f"{_TRAINING}::test_no_record_moves_the_clipped_sum_by_more_than_the_clipping_bound",),
    ),
    Mutation(
        "the records of a patient are clipped one by one",
        "client/training.py",
        "rows = _unit_gradients(model, data, piece, units[piece])",
        "rows = _unit_gradients(model, data, piece, torch.arange(len(piece)))",
        (f"{_TRAINING}::test_no_patient_moves_the_clipped_sum_by_more_than_the_clipping_bound",),
    ),
    Mutation(
        "the records of a patient enter a batch one by one",
        "client/training.py",
        "units, count = data.units(unit), data.count(unit)\n",
        "units, count = torch.arange(len(data)), len(data)\n",
        (f"{_TRAINING}::test_a_patient_enters_a_batch_with_all_records_or_none",),
    ),
    Mutation(
        "a gradient too large to bound, or undefined, is not left out",
        "client/per_record_gradients.py",
        "return torch.where(squared_norms <= LARGEST_NORM**2, squared_norms, math.inf)",
        "return squared_norms",
        (f"{_RECORD_GRADIENTS}::test_what_is_not_finite_or_too_large_has_no_bound",),
    ),
    Mutation(
        "a record of weight zero still adds its infinities",
        "client/per_record_gradients.py",
        "return tensor.index_fill(0, left_out, 0.0) if len(left_out) else tensor",
        "return tensor",
        (f"{_RECORD_GRADIENTS}::test_a_record_of_weight_zero_adds_nothing_even_where_it_is_not_finite",),
    ),
    Mutation(
        "Gram matrices are formed in float32",
        "client/per_record_gradients.py",
        "x, weight, geometry, out_size).double(), grad.flatten(2).transpose(1, 2).double()",
        "x, weight, geometry, out_size), grad.flatten(2).transpose(1, 2)",
        (_RECORD_GRADIENTS,),
    ),
    Mutation(
        "clipping keeps nothing back for rounding",
        "client/training.py",
        "SLACK = 2.0**-10",
        "SLACK = 0.0",
        (f"{_TRAINING}::test_what_clipping_keeps_back_pays_for_all_that_float32_can_lose",),
    ),
    Mutation(
        "the sums of a batch's pieces are rounded as they are added",
        "client/training.py",
        "total += piece_sum.mul_(1 / grid).round_()",
        "total += piece_sum.mul_(1 / grid)",
        (f"{_ATTACKS}/test_clipping.py::test_sums_lie_on_a_grid_so_that_pieces_add_up_exactly_in_any_order",),
    ),
    Mutation(
        "the norm of a gradient that cancels has no margin",
        "client/per_record_gradients.py",
        "clamp_(min=0.0) + margin * sizes",
        "clamp_(min=0.0) + 0.0 * sizes",
        (f"{_RECORD_GRADIENTS}::test_a_ghost_norm_is_never_below_a_thousandth_of_the_sizes_that_cancel",),
    ),
    Mutation(
        "logits of a crafted model are not clamped",
        "client/training.py",
        "return torch.nan_to_num(torch.cat(list(pieces)), nan=0.0).clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)",
        "return torch.cat(list(pieces))",
        (f"{_TRAINING}::test_scores_are_finite_whatever_the_model",),
    ),
)

_BOOKING_FIRST = f"{_CONTRIBUTION}::test_what_a_round_costs_is_booked_before_the_first_gradient"
_BOOKED = f"{_CONTRIBUTION}::test_what_is_booked_is_what_the_training_does"
_STATED = f"{_CONTRIBUTION}::test_what_stands_beside_the_change_is_what_the_policy_states"
_NOISE = f"{_CONTRIBUTION}::test_evaluation_carries_fresh_noise_of_the_stated_size_in_every_release"
_SPENT = f"{_CONTRIBUTION}::test_a_part_whose_budget_is_spent_adds_noise_alone_and_training_goes_on"
_FEWEST = f"{_CONTRIBUTION}::test_terms_that_allow_a_sum_with_too_little_noise_are_refused"
_FRESH = f"{_CONTRIBUTION}::test_two_rounds_of_one_model_share_no_randomness_under_privacy"

_BOOKS = "        report = None if plan is None else self._book_training(round_number, plan)\n"
_REPORTS = "        report = self._report() if plan is None else report\n"
_BOOKED_BEFORE = (
    _BOOKS
    + """\
        answered = release is not None and self._book_release(round_number, release)
        report = self._report() if plan is None else report
        random, noise = self._source_for(model), Keystream(self._random(SEED_BYTES))
        self._leave_out_what_is_gone()
        validation, test, own, groups = self._measured(model)
        started = time.perf_counter()
        change = self._no_change() if plan is None else self._change(plan, model, cohort, random)
"""
)

_MEAN = "tests/attacks/test_lies_about_the_mean.py"
_FULL_BATCHES = "tests/unit/common/privacy/test_feature_mean.py::test_full_batches_and_the_mean"
_MEAN_BOOKED = f"{_MEAN}::test_each_answer_is_booked_and_there_are_no_more_than_the_run_allows"

_CONTRIBUTION_MUTATIONS = (
    Mutation(
        "the mean of features is not booked",
        "client/contribution.py",
        "report = None if plan is None else self._book_training(round_number, plan)",
        "report = None if plan is None or plan is self._mean else self._book_training(round_number, plan)",
        (_MEAN_BOOKED,),
    ),
    Mutation(
        "the mean of features is told as often as a server asks",
        "client/contribution.py",
        "if told > repeats:",
        "if told > 10**9 + repeats:",
        (_MEAN_BOOKED,),
    ),
    Mutation(
        "the noise of steps leaves no room for the mean of features",
        "common/privacy/calibration.py",
        "return math.sqrt(steps / ((1 - privacy.mean_share) * (1 - privacy.alone_share))) / mu",
        "return math.sqrt(steps / (1 - privacy.alone_share)) / mu",
        (f"{_FULL_BATCHES}_are_one_gaussian_mechanism_and_the_accountant_says_so",),
    ),
    Mutation(
        "training is booked at half of its sample rate",
        "common/privacy/mechanism.py",
        "Booking(Account.TRAINING, self.event, self.unit, None, delta)",
        "Booking(Account.TRAINING, __import__('dataclasses').replace(self.event, sample_rate="
        "self.event.sample_rate / 2), self.unit, None, delta)",
        (_BOOKED,),
    ),
    Mutation(
        "training is booked after it is done",
        "client/contribution.py",
        _BOOKED_BEFORE,
        _BOOKED_BEFORE.replace(_BOOKS, "").replace(_REPORTS, "") + _BOOKS + _REPORTS,
        (_BOOKING_FIRST,),
    ),
    Mutation(
        "training is not booked at all",
        "client/contribution.py",
        "report = None if plan is None else self._book_training(round_number, plan)",
        "report = None",
        (_BOOKING_FIRST,),
    ),
    Mutation(
        "a release is booked to the training account",
        "client/planned_cost.py",
        "ACCOUNTS = {Part.VALIDATION: Account.VALIDATION, Part.TEST: Account.TEST, Part.TRAINING: Account.STATISTICS}",
        "ACCOUNTS = dict.fromkeys(Part, Account.TRAINING)",
        (_NOISE,),
    ),
    Mutation(
        "evaluation carries no noise",
        "client/contribution.py",
        "            entries += mechanism.noise_share(cohort, noise)\n",
        "",
        (_NOISE,),
    ),
    Mutation(
        "the noise of evaluation comes from a constant key",
        "client/contribution.py",
        "Keystream(self._random(SEED_BYTES))\n        self._leave",
        "Keystream(bytes(SEED_BYTES))\n        self._leave",
        (_NOISE,),
    ),
    Mutation(
        "the randomness of private training comes from a constant key",
        "client/contribution.py",
        "return Keystream(self._random(SEED_BYTES)).draw",
        "return Keystream(bytes(SEED_BYTES)).draw",
        (_FRESH,),
    ),
    Mutation(
        "the real number of training records is the weight in the mean",
        "client/contribution.py",
        "return Tail(policy.stated_training_units, counted, units[Part.TEST], entries)",
        "return Tail(len(self._train), counted, units[Part.TEST], entries)",
        (_STATED,),
    ),
    Mutation(
        "statistics of training records need nobody's agreement",
        "client/policy.py",
        "    _check_statistics(policy, run)\n",
        "",
        ("tests/unit/server/test_run_statistics.py::test_a_hospital_that_did_not_agree_takes_no_part",),
    ),
    Mutation(
        "a record counts twice as much in statistics as their noise covers",
        "common/evaluation/statistics.py",
        "WEIGHT = math.isqrt(NORM_BOUND**2 // TABLES)",
        "WEIGHT = 2 * math.isqrt(NORM_BOUND**2 // TABLES)",
        ("tests/unit/common/evaluation/test_statistics.py",),
    ),
    Mutation(
        "the real number of records divides the noisy sum",
        "client/contribution.py",
        "expected = plan.expected_batch(self.stated)",
        "expected = plan.expected_batch(len(self.data))",
        (_STATED,),
    ),
    Mutation(
        "the real number of validation records is told",
        "client/contribution.py",
        "units[release.part] = policy.stated_validation_units if is_validation",
        "units[release.part] = len(self._validation) if is_validation",
        (_STATED,),
    ),
    Mutation(
        "a part is measured although its budget is spent",
        "client/contribution.py",
        "            return False\n        self._alone_is_booked",
        "            return True\n        self._alone_is_booked",
        (_SPENT,),
    ),
    Mutation(
        "the agent does not check how few survivors the terms allow",
        "client/contribution.py",
        "if terms.fewest_survivors != fewest:",
        "if terms.fewest_survivors > cohort:",
        (_FEWEST,),
    ),
    Mutation(
        "a release is asked for as often as the server likes",
        "client/contribution.py",
        "if booked >= allowed:",
        "if booked > 10**9 + allowed:",
        (f"{_CONTRIBUTION}::test_a_release_is_made_as_often_as_the_run_allows",),
    ),
    Mutation(
        "figures for a hospital's own staff that fail are told to the server",
        "client/contribution.py",
        "            return validation, test, None, ()\n",
        "            raise\n",
        (f"{_CONTRIBUTION}::test_figures_that_cannot_be_made_of_scores_are_not_told_to_the_server",),
    ),
    Mutation(
        "training that fails is told to the server",
        "client/contribution.py",
        "return self._trained(plan, self._train.emptied(), model, cohort, random)",
        "raise",
        (f"{_CONTRIBUTION}::test_training_that_fails_gives_a_valid_vector",),
    ),
)

_LEDGER_MUTATIONS = (
    Mutation(
        "the ledger's anchor is not synced",
        "common/files.py",
        "                os.fsync(file.fileno())\n",
        "                pass\n",
        (f"{_LEDGER}::test_an_anchor_is_on_the_disk_before_it_takes_its_place",),
    ),
    Mutation(
        "a budget that is passed is ignored",
        "client/ledger/ledger.py",
        "if not total <= policy.budget:",
        "if total < 0:",
        (f"{_LEDGER}::test_a_round_beyond_the_budget_is_refused_and_nothing_is_written",),
    ),
    Mutation(
        "a booking is judged without what it adds",
        "client/ledger/ledger.py",
        "total = self._epsilon(booking.account, policy, accountant, new)",
        "total = self._epsilon(booking.account, policy, accountant, ())",
        (f"{_LEDGER}::test_a_round_beyond_the_budget_is_refused_and_nothing_is_written",),
    ),
    Mutation(
        "accounts are mixed",
        "client/ledger/ledger.py",
        "if booking.account is account]\n",
        "if booking.account]\n",
        (f"{_LEDGER}::test_each_account_has_a_budget_of_its_own",),
    ),
    Mutation(
        "the unit of a booking is forgotten",
        "client/ledger/ledger.py",
        "kind = booking.account, replace(booking.event, steps=1), booking.unit, booking.colluders",
        "kind = booking.account, replace(booking.event, steps=1), PrivacyUnit.PATIENT, booking.colluders",
        (f"{_LEDGER}::test_rounds_for_records_are_no_rounds_for_patients",),
    ),
    Mutation(
        "a ledger that was removed is begun anew",
        "client/ledger/ledger.py",
        "            if held is None and not chain.exists(folder):",
        "            if not chain.exists(folder):",
        (f"{_LEDGER}::test_a_ledger_that_was_removed_is_missed",),
    ),
    Mutation(
        "a changed line of the ledger is believed",
        "client/ledger/chain.py",
        "if digest != _digest(number, head.digest, text):",
        "if not digest:",
        (f"{_LEDGER}::test_tampering_is_detected_and_refused_until_accepted_and_forgets_nothing",),
    ),
)

_AGENT_MUTATIONS = (
    Mutation(
        "answer a request of another version than its run's",
        "client/agent.py",
        "    if version != run.protocol_version:",
        "    if version > run.protocol_version + 1:",
        ("tests/unit/common/run/test_versions.py",),
    ),
    Mutation(
        "the model that comes with a request need not be the one its terms name",
        "client/agent.py",
        "if hash_model(model) != terms.model_hash:",
        "if not terms.model_hash:",
        (f"{_AGENT}::test_another_model_than_the_one_named_costs_no_epsilon",),
    ),
    Mutation(
        "a sum with too little noise is unmasked",
        "client/agent.py",
        "if vectors < fewest:",
        "if vectors < 0:",
        (f"{_ROUNDS}::test_in_mode_distributed_hospitals_themselves_refuse_a_sum_with_too_little_noise",),
    ),
    Mutation(
        "what is wrong with a hospital's data is told to the server",
        "client/agent.py",
        "    if isinstance(error, DataError):\n",
        "    if isinstance(error, DataError) and False:\n",
        (f"{_AGENT}::test_what_is_wrong_with_data_or_ledger_is_not_told",),
    ),
    Mutation(
        "what is wrong with a hospital's ledger is told to the server",
        "client/agent.py",
        "    if isinstance(error, LedgerError | AuditError):\n",
        "    if isinstance(error, LedgerError | AuditError) and False:\n",
        (f"{_AGENT}::test_what_is_wrong_with_data_or_ledger_is_not_told",),
    ),
    Mutation(
        "a run is joined whatever the hospital's policy",
        "client/agent.py",
        "        check_agreement(self._policy, description, self._identity)\n",
        "",
        (f"{_AGENT}::test_a_run_outside_the_hospitals_policy_is_refused",),
    ),
    Mutation(
        "a revoked hospital is masked with",
        "client/agent.py",
        "self._revocations.check(run.certificates, run.certificates.keys() & set(names), self._here.now())",
        "self._revocations.check(run.certificates, (), self._here.now())",
        ("tests/protocol/test_changing_members.py::test_a_server_that_keeps_a_revoked_hospital_gets_no_further_round",),
    ),
    Mutation(
        "an agent that was restarted gives a second vector",
        "client/agent.py",
        "            self._answered.advance(run.parameters.run_id, round_number, Phase.MASKED_INPUT)\n"
        "            # Whatever happens",
        "            # Whatever happens",
        (f"{_AGENT}::test_a_vector_is_given_once_also_by_an_agent_that_was_restarted",),
    ),
)

_PINNED = f"{_ATTACKS}/test_pinned_roster.py"
_TOO_MANY_LOST = (
    f"{_ROUNDS}::test_in_mode_distributed_more_dropouts_than_tolerated_end_the_round_before_anything_is_revealed"
)

_ROSTER_MUTATIONS = (
    Mutation(
        "a roster may leave out members of the consortium",
        "client/roster.py",
        "if missing and not policy.allow_partial_roster:",
        "if missing and policy.allow_partial_roster:",
        (f"{_PINNED}::test_a_roster_that_leaves_one_member_out_is_refused",),
    ),
    Mutation(
        "a certificate on the roster may hold another key than the member list",
        "client/roster.py",
        ".public_bytes_raw() != key:",
        ".public_bytes_raw() == b'':",
        (
            f"{_PINNED}::test_a_certificate_of_another_key_for_a_members_name_is_refused",
            f"{_PINNED}::test_two_members_certificates_in_each_others_place_are_refused",
        ),
    ),
    Mutation(
        "a revoked certificate on the roster is accepted",
        "client/roster.py",
        "if revoked is not None and certificate.serial_number in revoked.revoked:",
        "if revoked is not None and certificate.serial_number in ():",
        (f"{_PINNED}::test_a_certificate_that_was_revoked_is_refused_although_its_member_has_a_new_one",),
    ),
    Mutation(
        "colluders are counted on the part of the consortium that the roster names",
        "client/roster.py",
        "return RosterKeys(keys, certificates, len(listed.members), listed.number)",
        "return RosterKeys(keys, certificates, len(keys), listed.number)",
        (f"{_PINNED}::test_an_operator_who_allows_a_part_still_counts_colluders_on_the_whole",),
    ),
    Mutation(
        "a member list is believed without the authority's newest number",
        "client/roster.py",
        "    _check_newest(listed, revoked)\n",
        "",
        (_PINNED,),
    ),
)

_POLICY_MUTATIONS = (
    Mutation(
        "a run without privacy is joined",
        "client/policy.py",
        "if not mechanism.is_private and not policy.allow_no_privacy:",
        "if not mechanism.is_private and policy.allow_no_privacy:",
        (f"{_AGENT}::test_a_run_outside_the_hospitals_policy_is_refused",),
    ),
    Mutation(
        "exact counts leave a hospital that has not agreed to them",
        "client/policy.py",
        "and mechanism.is_private and not policy.allow_exact_evaluation:",
        "and mechanism.noise_in_sum and not policy.allow_exact_evaluation:",
        (f"{_AGENT}::test_a_run_outside_the_hospitals_policy_is_refused",),
    ),
    Mutation(
        "δ is not judged against the stated number of units",
        "client/policy.py",
        "delta * stated >= 1:",
        "delta >= 1:",
        (f"{_AGENT}::test_a_run_outside_the_hospitals_policy_is_refused",),
    ),
    Mutation(
        "noise that withstands fewer colluders than agreed is accepted in mode local",
        "client/policy.py",
        "noise_in_sums = mechanism.noise_in_sum or not run.evaluation.exact",
        "noise_in_sums = mechanism.noise_in_sum",
        (f"{_AGENT}::test_a_run_outside_the_hospitals_policy_is_refused",),
    ),
)

_SERVER_MUTATIONS = (
    Mutation(
        "the server goes on with fewer vectors than the noise needs",
        "server/rounds.py",
        "return max(routed.directory.threshold, terms.fewest_survivors)",
        "return routed.directory.threshold",
        (_TOO_MANY_LOST,),
    ),
    Mutation(
        "the server does not stop a round with too few vectors",
        "server/rounds.py",
        "        if len(masked.submitted) < fewest:\n",
        "        if len(masked.submitted) < 0:\n",
        (_TOO_MANY_LOST,),
    ),
    Mutation(
        "a plain sum may be over any number of hospitals",
        "server/rounds.py",
        "if len(summed) < self._run.min_hospitals:",
        "if not summed:",
        (f"{_ROUNDS}::test_plain_mode_also_refuses_a_sum_of_too_few",),
    ),
    Mutation(
        "the consistency check is left out of an active round",
        "server/rounds.py",
        "if consistency_check.needs_agreement(self._run):",
        "if not consistency_check.needs_agreement(self._run):",
        (f"{_ROUNDS}::test_a_round_in_which_somebody_is_missing_takes_three_exchanges_and_the_next_two_again",),
    ),
)

_OUTLIVES = f"{_ATTACKS}/test_ledger_outlives_membership.py"
_UNACCEPTED = f"{_ATTACKS}/test_unaccepted_models.py"
_AGREEMENT = "tests/unit/client/test_agreement.py"
_PROPOSAL = "tests/unit/common/run/test_proposal.py"
_KEPT = "tests/unit/client/test_kept_runs.py"
_JOINING = f"{_ATTACKS}/test_time_of_joining.py"
_SHOWN = "tests/unit/deploy/hospital/test_runs.py"
_RECORDS_ASKED_FOR = f"{_ATTACKS}/test_terms_that_ask_about_records.py"
_MEAN_UNIT = "tests/unit/common/privacy/test_feature_mean.py"
_PLANNED = "tests/unit/client/test_planned_cost.py"
_LARGE_DELTA = "test_row_9_a_run_that_names_a_large_delta_fills_no_budget_that_is_judged_at_the_hospitals_own"

_TASK_AND_MODEL_MUTATIONS = (
    Mutation(
        "a task is not bound in the run's hash",
        "common/config.py",
        'return canonical_json(self.model_dump(mode="json"))',
        'return canonical_json(self.model_dump(mode="json", exclude={"task"}))',
        ("tests/unit/common/test_config.py", f"{_ATTACKS}/test_lies_about_terms.py"),
    ),
    Mutation(
        "the share of the mean, copies and their warp are not bound in the run's hash",
        "common/config.py",
        'return canonical_json(self.model_dump(mode="json"))',
        'return canonical_json(self.model_dump(mode="json", exclude={"training": {"copies", "warp"}, '
        '"privacy": {"mean_share"}}))',
        ("tests/unit/common/test_config.py",),
    ),
    Mutation(
        "the label map is left out of the terms that hospitals agree to",
        "common/run/proposal.py",
        'MEMBERS = frozenset({"roster", "member_list", "vector_length"})',
        'MEMBERS = frozenset({"roster", "member_list", "vector_length", "task"})',
        (f"{_PROPOSAL}::test_terms_change_with_every_section_and_not_with_the_members",),
    ),
    Mutation(
        "a model from outside is run whatever its hash",
        "client/policy.py",
        "if outside.sha256 not in policy.accepted_models:",
        "if not outside.sha256:",
        (_UNACCEPTED,),
    ),
    Mutation(
        "an accepted package may be installed with another source",
        "common/models/package.py",
        "if _hash(files) != model.sha256:",
        "if not _hash(files):",
        (_UNACCEPTED,),
    ),
    Mutation(
        "a backbone's file may be another one than was accepted",
        "common/models/backbone.py",
        "if hashlib.sha256(encoded).hexdigest() != named.sha256:",
        "if not hashlib.sha256(encoded).hexdigest():",
        ("tests/unit/common/models/test_backbone.py::test_a_file_that_is_exchanged_after_it_was_found_is_refused",),
    ),
    Mutation(
        "a run refuses for what its own terms find in an image",
        "client/data/mistakes.py",
        "        Mistake.IMAGE_TOO_SMALL,\n        Mistake.WRONG_COLOUR,\n        Mistake.WRONG_PHOTOMETRIC,\n",
        "",
        (_RECORDS_ASKED_FOR, f"{_ATTACKS}/test_images_left_out.py"),
    ),
    Mutation(
        "a run refuses for a patient who has two findings by its map",
        "client/data/mistakes.py",
        "        Mistake.PATIENT_CONTRADICTING_LABELS,\n        Mistake.PATIENT_UNKNOWN,\n",
        "        Mistake.PATIENT_UNKNOWN,\n",
        (_RECORDS_ASKED_FOR,),
    ),
    Mutation(
        "pictures that are alike at the run's size refuse it",
        "client/data/mistakes.py",
        "        Mistake.DUPLICATE_IMAGE,\n        Mistake.DUPLICATE_REENCODED,\n",
        "",
        (_RECORDS_ASKED_FOR,),
    ),
    Mutation(
        "an image that does not fit a run's terms is used in it",
        "client/data/hospital_data.py",
        "if writer is None or label is None or examined.usable is None or any(finding.blocks for finding in own):",
        "if writer is None or label is None or examined.usable is None:",
        (f"{_ATTACKS}/test_images_left_out.py", "tests/unit/client/data/test_hospital_data.py"),
    ),
    Mutation(
        "a running agent keeps its ledger for the data of the next run",
        "client/agent.py",
        "            self._ledger = None\n        data = self._data[2]",
        "        data = self._data[2]",
        (f"{_ATTACKS}/test_terms_that_need_room.py",),
    ),
    Mutation(
        "a running agent trains the next run on the data of the last",
        "client/agent.py",
        "self._data[:2] != (run_id, contract)",
        "self._data[1] != contract",
        (f"{_ATTACKS}/test_terms_that_need_room.py",),
    ),
    Mutation(
        "a full disk refuses the run",
        "client/data/hospital_data.py",
        "except NoRoomError as error:",
        "except ZeroDivisionError as error:",
        (f"{_ATTACKS}/test_terms_that_need_room.py",),
    ),
    Mutation(
        "images that do not fit memory or model refuse the run",
        "client/contribution.py",
        "except (ConfigError, DataError, MemoryError, OSError, RuntimeError) as error:",
        "except ZeroDivisionError as error:",
        (f"{_ATTACKS}/test_terms_that_need_room.py",),
    ),
    Mutation(
        "images that a run's map leaves out are not known to the ledger",
        "client/data/hospital_data.py",
        "split = survey.pass_over(examined)",
        "split = survey._place(examined)[1]",
        (f"{_ATTACKS}/test_images_left_out.py",),
    ),
)

_MEAN_MUTATIONS = (
    Mutation(
        "features enter their mean at the length that a model gives them",
        "client/training.py",
        "features = functional.normalize(data.take(_chosen(piece)), dim=-1)",
        "features = data.take(_chosen(piece))",
        (_MEAN_UNIT, _TRAINING),
    ),
    Mutation(
        "the mean of features in mode distributed carries no noise",
        "client/training.py",
        "    centre += noise.noise_share(cohort, Keystream(random(SEED_BYTES)))\n",
        "",
        (f"{_TRAINING}::test_the_mean_of_features_in_mode_distributed_carries_a_hospitals_share_of_noise",),
    ),
    Mutation(
        "the mean of features in mode local carries no noise",
        "client/training.py",
        "centre[:] = _noisy_mean(clipped, plan.noise_multiplier * bound, stated, noise).numpy()",
        "centre[:] = _noisy_mean(clipped, 0.0 * bound, stated, noise).numpy()",
        (_MEAN_UNIT, _TRAINING),
    ),
    Mutation(
        "the real number of units divides the mean of features",
        "client/contribution.py",
        "return feature_mean(self.model, self.data, plan, self.stated, self.random)",
        "return feature_mean(self.model, self.data, plan, max(1, len(self.data)), self.random)",
        (f"{_CONTRIBUTION}::test_a_mean_of_features_is_over_at_most_what_is_stated_and_divided_by_that",),
    ),
    Mutation(
        "the mean of features counts more units than are stated",
        "client/contribution.py",
        "            data = data.limited(stated, self._run.privacy.unit, self._choice)\n",
        "            pass\n",
        (f"{_CONTRIBUTION}::test_a_mean_of_features_is_over_at_most_what_is_stated_and_divided_by_that",),
    ),
    Mutation(
        "copies of a record are summed instead of averaged",
        "client/per_record_gradients.py",
        "    residuals /= copies\n",
        "",
        (_TRAINING, _RECORD_GRADIENTS),
    ),
    Mutation(
        "copies of a record are summed instead of averaged in other heads",
        "client/per_record_gradients.py",
        "return rows.view(len(labels), copies, -1).mean(dim=1)",
        "return rows.view(len(labels), copies, -1).sum(dim=1)",
        (_TRAINING, _RECORD_GRADIENTS),
    ),
    Mutation(
        "the mean of features is left out of a run's planned end",
        "client/contribution.py",
        "planned = [*alone] if mean is None else [mean, *alone]",
        "planned = [*alone]",
        (f"{_CONTRIBUTION}::test_a_runs_planned_end_counts_the_mean_of_features",),
    ),
    Mutation(
        "the mean of features is left out of what a proposal costs",
        "client/planned_cost.py",
        "    if once is not None:\n        bookings.append(once)\n",
        "",
        (f"{_PLANNED}::test_the_mean_of_features_is_part_of_the_target",),
    ),
    Mutation(
        "the mean of features is asked beside a question",
        "client/contribution.py",
        "        if terms.question is not None:\n"
        '            raise RunError("the mean of features must be asked in a round without a question")\n',
        "",
        (f"{_MEAN}::test_a_mean_beside_a_question_or_of_a_run_without_one_is_refused",),
    ),
    Mutation(
        "statistics are asked beside training",
        "client/contribution.py",
        "if release.kind in WITHOUT_TREES and terms.trains:",
        "if release.kind in WITHOUT_TREES and cohort < 0:",
        (f"{_CONTRIBUTION}::test_who_is_trained_on_is_not_asked_in_a_round_that_trains",),
    ),
    Mutation(
        "each label of a multi-label release is counted at the full norm",
        "common/evaluation/layout.py",
        "share = 1 / math.sqrt(trees)",
        "share = 1.0",
        (_TREE, "tests/unit/common/evaluation/test_plan.py"),
    ),
)

_ALONE = "tests/unit/server/test_run_against_alone.py"
_ALONE_SHARE = "tests/unit/common/privacy/test_alone_share.py"
_AGAINST = "tests/unit/common/evaluation/test_against_alone.py"
_SPREAD = "tests/unit/common/evaluation/test_site_spread.py"
_STEPS_ALONE = "tests/unit/client/test_steps_alone.py"
_THRESHOLD_ALONE = "tests/unit/client/test_own_threshold.py"

_ALONE_MUTATIONS = (
    Mutation(
        "a hospital's own model is not booked",
        "client/contribution.py",
        "            bookings += self._mechanism.bookings_alone(self._run, self.layout.parameters)\n",
        "            pass\n",
        (f"{_ALONE}::test_a_run_compares_once_at_its_end_and_keeps_its_target",),
    ),
    Mutation(
        "a hospital's own model is booked at each comparison",
        "client/contribution.py",
        "self._alone_is_booked = self._alone_is_booked or of_alone",
        "self._alone_is_booked = False",
        (f"{_ALONE}::test_a_comparison_whose_sum_fails_is_asked_again_by_the_same_models",),
    ),
    Mutation(
        "the run's own training takes the whole target beside hospitals' models",
        "common/privacy/calibration.py",
        "return math.sqrt(steps / ((1 - privacy.mean_share) * (1 - privacy.alone_share))) / mu",
        "return math.sqrt(steps / (1 - privacy.mean_share)) / mu",
        (f"{_ALONE_SHARE}::test_everything_that_a_hospital_books_on_its_training_records_is_within_the_runs_target",),
    ),
    Mutation(
        "with sampled batches the run's noise forgets hospitals' own models",
        "common/privacy/calibration.py",
        "    if privacy.alone_share:\n        alone = alone_privacy(privacy)\n",
        "    if privacy.alone_share < 0:\n        alone = alone_privacy(privacy)\n",
        (f"{_ALONE_SHARE}::test_sampled_batches_leave_room_for_it_too",),
    ),
    Mutation(
        "a share that the accountant rounds up is taken",
        "common/privacy/calibration.py",
        "if accounted_mu(target, privacy.delta, accountant) > share / _BELOW:",
        "if target < 0:",
        (f"{_ALONE_SHARE}::test_a_share_so_small_that_the_accountant_rounds_it_up_is_refused",),
    ),
    Mutation(
        "claims forget what hospitals' own models cost",
        "common/privacy/mechanism.py",
        "once_before=before, beside=alone",
        "once_before=before",
        (f"{_ALONE_SHARE}::test_what_a_mode_claims_against_each_adversary_counts_it",),
    ),
    Mutation(
        "a step alone that fails is taken again",
        "client/steps_alone.py",
        "is_first, self.done = not self.done, self.done + 1",
        "is_first = not self.done",
        (f"{_STEPS_ALONE}::test_it_takes_as_many_steps_as_the_run_and_finds_one_centre",),
    ),
    Mutation(
        "a record counts in a comparison beyond the norm",
        "common/evaluation/against_alone.py",
        "DISAGREE = math.isqrt(NORM_BOUND**2 - WEIGHT**2)",
        "DISAGREE = WEIGHT",
        (_AGAINST,),
    ),
    Mutation(
        "a record counts in an answer about the threshold as often as it has copies",
        "client/own_threshold.py",
        "return int(np.trunc(np.bincount(place, values) / sizes).sum())",
        "return int(np.trunc(np.bincount(place, values)).sum())",
        (_THRESHOLD_ALONE,),
    ),
    Mutation(
        "an answer about the threshold has half the noise that is booked",
        "client/own_threshold.py",
        "        noise_multiplier=multiplier,\n",
        "        noise_multiplier=multiplier / 2,\n",
        (f"{_THRESHOLD_ALONE}::test_an_answers_noise_has_the_deviation_that_is_booked",),
    ),
    Mutation(
        "a threshold is sought without noise",
        "client/contribution.py",
        "        if event is None:\n            return lambda: 0\n",
        "        if event is None or event.steps:\n            return lambda: 0\n",
        (f"{_CONTRIBUTION}::test_the_answers_about_a_hospitals_own_threshold_have_the_noise_that_is_booked",),
    ),
    Mutation(
        "the spread of hospitals is no part of the test part's budget",
        "common/evaluation/plan.py",
        "of_test = 1 - (ALONE_SHARE if against_alone else 0.0) - spread_share",
        "of_test = 1 - (ALONE_SHARE if against_alone else 0.0)",
        (f"{_SPREAD}::test_with_the_spread_a_test_record_still_costs_the_target",),
    ),
    Mutation(
        "a hospital with few cases counts in full",
        "common/evaluation/site_spread.py",
        "return min(max((rarer - self.least) / (self.full - self.least), 0.0), 1.0)",
        "return float(rarer > self.least)",
        (_SPREAD,),
    ),
    Mutation(
        "what a change of weight costs is forgotten",
        "common/evaluation/site_spread.py",
        "self.weight(self.full - 1) / self.full + rise * longest",
        "self.weight(self.full - 1) / self.full",
        (_SPREAD,),
    ),
    Mutation(
        "a comparison is no part of the test part's budget",
        "common/evaluation/plan.py",
        "of_test = 1 - (ALONE_SHARE if against_alone else 0.0) - spread_share",
        "of_test = 1 - spread_share",
        (f"{_AGAINST}::test_with_the_comparison_a_test_record_still_costs_the_target",),
    ),
)

_RUN_MUTATIONS = (
    Mutation(
        "a run goes on under other terms than were agreed",
        "client/agreement.py",
        "if agreed is not None and agreed.terms != terms:",
        "if agreed is not None and not agreed.terms:",
        (_AGREEMENT,),
    ),
    Mutation(
        "a run goes on after the agreed time",
        "client/agreement.py",
        "if until is not None and now.timestamp() > until:",
        "if until is not None and now.timestamp() < 0:",
        (_AGREEMENT,),
    ),
    Mutation(
        "a run that was declined is joined",
        "client/agreement.py",
        "if not kept.answer.agreed:",
        "if not kept.answer.by:",
        (f"{_AGREEMENT}::test_a_run_that_was_declined_is_refused",),
    ),
    Mutation(
        "the agent does not ask what was agreed to",
        "client/agent.py",
        "until = self._agreements.check_run(description, self._policy.consent_to(math.inf), self._here.now())",
        "until = None",
        (f"{_AGENT}::test_a_run_outside_the_hospitals_policy_is_refused",),
    ),
    Mutation(
        "an agreement's end is forgotten once a run has begun",
        "client/agent.py",
        "        check_time(run.description.run_id, run.until, self._here.now())\n"
        "        terms = RoundTerms.decode(asked.terms)\n",
        "        terms = RoundTerms.decode(asked.terms)\n",
        (f"{_AGENT}::test_no_vector_is_given_after_the_agreed_time_although_the_run_has_begun",),
    ),
    Mutation(
        "a server may change what a hospital has answered",
        "common/run/proposal.py",
        'exclude={"signature"}))\n\n    @classmethod',
        'exclude={"signature", "agreed"}))\n\n    @classmethod',
        (_PROPOSAL,),
    ),
    Mutation(
        "a proposal is answered twice",
        "client/agreement.py",
        "            if before is not None:\n                return before\n",
        "",
        (_AGREEMENT,),
    ),
    Mutation(
        "a run whose planned end passes the budget is begun",
        "client/agent.py",
        "        run.contributor.check_planned_end()\n",
        "",
        (f"{_ATTACKS}/test_lying_server.py::{_LARGE_DELTA}",),
    ),
    Mutation(
        "a proposal that passes a budget is agreed to",
        "client/planned_cost.py",
        "if not cost.after <= cost.budget:",
        "if cost.after < 0:",
        (_PLANNED, _AGREEMENT),
    ),
    Mutation(
        "a received file need not be the one that the server signed",
        "client/received_run.py",
        "if file_fact(folder / name) != fact:",
        "if not file_fact(folder / name):",
        (_KEPT,),
    ),
    Mutation(
        "a received model need not be the one with which the run ended",
        "client/received_run.py",
        "if model_hash_of(folder) != delivery.model_hash:",
        "if not model_hash_of(folder):",
        (_KEPT,),
    ),
    Mutation(
        "a received run may record another round than this hospital was asked for",
        "client/received_run.py",
        "same = (mine.terms, mine.model_hash, mine.train) == (summed.terms, summed.model_hash, summed.train)",
        "same = True",
        (_KEPT,),
    ),
    Mutation(
        "a received run may lack terms that this hospital agreed to",
        "client/received_run.py",
        "known = entry.body.config_hash in run.descriptions",
        "known = bool(run.descriptions)",
        (_KEPT,),
    ),
    Mutation(
        "a delivery is believed whoever signed it",
        "common/run/delivery.py",
        "if not is_signed_by(key, bytes.fromhex(delivery.signature), delivery.signed_part()):",
        "if delivery.time < 0:",
        ("tests/unit/common/run/test_delivery.py",),
    ),
    Mutation(
        "a new state folder begins with an empty ledger",
        "client/ledger/place.py",
        "    _require_remembered(state, folder)\n",
        "",
        (_OUTLIVES,),
    ),
    Mutation(
        "images that another ledger knows are counted anew",
        "client/ledger/place.py",
        "if any(other.resolve() != folder.resolve() for other in others):",
        "if len(others) < 0:",
        (_OUTLIVES,),
    ),
    Mutation(
        "a ledger need not hold the line that the consortium remembers",
        "client/ledger/place.py",
        "return newest_anchor(state / AUDIT_FILE) or remembered_anchor(state)",
        "return newest_anchor(state / AUDIT_FILE)",
        (_OUTLIVES,),
    ),
    Mutation(
        "data that shares no image with the ledger's is taken for the same",
        "client/ledger/place.py",
        "if fingerprint.hex() in earlier or _knows(folder, here):",
        "if earlier:",
        (_OUTLIVES,),
    ),
    Mutation(
        "a statement about a ledger is believed whoever signed it",
        "common/identity/ledger_statement.py",
        "if party != statement.hospital or not is_signed_by(",
        "if party != statement.hospital and not is_signed_by(",
        (_OUTLIVES,),
    ),
    Mutation(
        "the consortium takes a statement of less than was spent",
        "server/members/ledgers.py",
        "if before is not None and statement.epsilon < before.epsilon - _TOLERANCE:",
        "if before is not None and statement.epsilon < 0:",
        (_OUTLIVES,),
    ),
    Mutation(
        "one member states for another",
        "server/members/ledgers.py",
        "if statement.hospital != name or signed_by != key:",
        "if statement.hospital != name and signed_by != key:",
        (_OUTLIVES,),
    ),
)

_RECEIVED_MUTATIONS = (
    Mutation(
        "the SHA-256 of a received model's tensors is not looked at",
        "client/received_run.py",
        "if card.sha256 != delivery.files[MODEL_FILES[0]].sha256:",
        'if card.sha256 == "":',
        (f"{_KEPT}::test_a_card_of_another_file_of_tensors_is_refused",),
    ),
    Mutation(
        "what model.json says of a received model is taken as it is",
        "client/received_run.py",
        "    require_same(card, expected, name)",
        "    require_same(card, card, name)",
        (f"{_KEPT}::test_row_7_a_model_that_is_described_otherwise_than_the_run_made_it_is_refused",),
    ),
    Mutation(
        "one fact of model.json is not compared",
        "common/run/model_facts.py",
        "for key in ModelFacts.model_fields:",
        "for key in list(ModelFacts.model_fields)[:-1]:",
        (f"{_KEPT}::test_row_7_a_model_that_is_described_otherwise_than_the_run_made_it_is_refused",),
    ),
    Mutation(
        "the events of a received run need not be those in the chain",
        "client/received_run.py",
        "if told is None or (told.length_bytes, told.events_hash) != _length_and_hash(delivery, EVENTS_FILE):",
        "if told is None or told.length_bytes != _length_and_hash(delivery, EVENTS_FILE)[0]:",
        (f"{_KEPT}::test_what_does_not_verify_is_refused_once_with_the_reason",),
    ),
    Mutation(
        "events may name other terms than the chain",
        "common/run/told_run.py",
        "_require(getattr(described, section) == getattr(terms, section), place,",
        "_require(True or getattr(started.config, section) == getattr(terms, section), place,",
        (f"{_KEPT}::test_events_that_say_something_else_than_the_chain_are_found",),
    ),
    Mutation(
        "events may say another ε than hospitals reported",
        "common/run/told_run.py",
        '_require(done.epsilon_spent == summed.epsilon, place, "epsilon_spent")',
        '_require(done.epsilon_spent.keys() == summed.epsilon.keys(), place, "epsilon_spent")',
        (f"{_KEPT}::test_events_that_say_something_else_than_the_chain_are_found",),
    ),
    Mutation(
        "a run goes on under other terms, in the record that a hospital receives",
        "client/received_run.py",
        '_require(same, place, "a run must go on under its own terms, got others")',
        '_require(same or True, place, "a run must go on under its own terms, got others")',
        (f"{_KEPT}::test_terms_that_change_in_the_middle_of_a_run_are_found",),
    ),
    Mutation(
        "a centre need not come from a mean of features",
        "client/received_run.py",
        "mean.round_number == body.round_number and _purpose(mean, place) is Purpose.MEAN",
        "mean.round_number == body.round_number",
        (f"{_KEPT}::test_a_false_centre_is_found",),
    ),
    Mutation(
        "a centre may come at any step",
        "client/received_run.py",
        "_require(made and run.step == 0, place,",
        "_require(made or run.step > 0, place,",
        (f"{_KEPT}::test_a_false_centre_is_found",),
    ),
    Mutation(
        "a round's sum may be recorded twice",
        "client/received_run.py",
        "_require(body.round_number not in run.sums, place,",
        "_require(body.round_number >= 0, place,",
        (f"{_KEPT}::test_a_sum_that_is_recorded_twice_is_found",),
    ),
    Mutation(
        "a hospital takes pages of the server's",
        "common/run/delivery.py",
        "if delivery.files.keys() != set(NEEDED_FILES):",
        "if not delivery.files.keys() >= set(NEEDED_FILES):",
        (f"{_KEPT}::test_what_does_not_verify_is_refused_once_with_the_reason",),
    ),
    Mutation(
        "a file of any size is read into a hospital's memory",
        "common/run/delivery.py",
        "> most:",
        "> most * 1024:",
        ("tests/unit/common/run/test_delivery.py",),
    ),
    Mutation(
        "a run passes for another with the same twelve digits",
        "client/kept_runs.py",
        "return kept.delivery if kept.run_id == run_id else None",
        "return kept.delivery",
        (f"{_KEPT}::test_a_run_that_has_the_digits_of_a_kept_one_neither_replaces_nor_passes_for_it",),
    ),
    Mutation(
        "a run replaces another with the same twelve digits",
        "client/kept_runs.py",
        "return None if kept == run_id else kept",
        "return None",
        (f"{_KEPT}::test_a_run_that_has_the_digits_of_a_kept_one_neither_replaces_nor_passes_for_it",),
    ),
    Mutation(
        "a damaged list of a machine's ledgers counts as empty",
        "client/ledger/place.py",
        'found = "it was changed, or written by another version"',
        "return _Registry()",
        (_OUTLIVES,),
    ),
    Mutation(
        "features are computed of the images alone that a label map names",
        "client/contribution.py",
        """    pictures = copies_of(part.all_images, run.training.warp, copies, cache)
    inputs: Array = model_inputs(run.model.architecture, pictures, cache)
    if copies > 1:
        inputs = inputs.reshape(len(part.all_images), copies, inputs.shape[1])
    return TrainingData.of(inputs, targets(run.task, part.labels), part.patients, part.rows)
""",
        """    pictures = copies_of(part.images, run.training.warp, copies, cache)
    inputs: Array = model_inputs(run.model.architecture, pictures, cache)
    if copies > 1:
        inputs = inputs.reshape(len(part.images), copies, inputs.shape[1])
    return TrainingData.of(inputs, targets(run.task, part.labels), part.patients)
""",
        (_JOINING,),
    ),
    Mutation(
        "images that a label map leaves out are compared with no other",
        "client/data/survey.py",
        "compared = bytes(self._thumbnails + self._other_thumbnails)",
        "compared = bytes(self._thumbnails)",
        (_JOINING,),
    ),
    Mutation(
        "images that a label map leaves out need no room",
        "client/data/hospital_data.py",
        "number = len(catalogue.entries) if keep else 0",
        "number = len(catalogue.labelled) if keep else 0",
        (f"{_ATTACKS}/test_terms_that_need_room.py",),
    ),
    Mutation(
        "images that a label map leaves out are trained on",
        "client/training.py",
        "return self.inputs[records if len(self.lies) == len(self.inputs) else self.lies[records]]",
        "return self.inputs[records]",
        (_TRAINING, _JOINING),
    ),
    Mutation(
        "a run that takes fewer units than there are copies them into memory",
        "client/training.py",
        "        return type(self)(self.inputs, self.labels[chosen], numbers, *some)",
        "        return type(self)(self.take(chosen.nonzero()[:, 0]), self.labels[chosen], numbers, *list(some)[:2])",
        (_TRAINING,),
    ),
    Mutation(
        "a received model may be larger than its run says",
        "client/received_run.py",
        "    if length > most:",
        "    if length > 1024 * most:",
        (f"{_KEPT}::test_what_does_not_verify_is_refused_once_with_the_reason",),
    ),
    Mutation(
        "an operator decides without seeing the label map",
        "deploy/hospital/runs.py",
        "    for written, meaning in task.labels.items():",
        "    for written, meaning in ():",
        (_SHOWN,),
    ),
    Mutation(
        "what a server wrote into a proposal reaches the terminal",
        "deploy/hospital/runs.py",
        "return Fact(head, printable(words))",
        "return Fact(head, words)",
        (_SHOWN,),
    ),
    Mutation(
        "a name of the server's choice passes for the words of a proposal's page",
        "deploy/hospital/runs.py",
        """            shown += f"\\\\{letter}"
""",
        """            shown += letter
""",
        (_SHOWN,),
    ),
)

_DISPUTES = f"{_ATTACKS}/test_lies_about_disputes.py"
_DISPUTE_LIES = f"{_ATTACKS}/test_lies_about_disputes_to_agents.py"
_NAMED = "tests/unit/server/test_named_cheats.py"
_MISSED = f"{_ATTACKS}/test_missed_verdicts.py"

_DISPUTE_MUTATIONS = (
    Mutation(
        "a dispute is about other vectors than were signed",
        "common/secagg/disputes.py",
        "    if hashed != of.views[name].vector_hash:\n",
        "    if not hashed:\n",
        (_DISPUTES,),
    ),
    Mutation(
        "a dispute takes a seed that its hospital did not commit to",
        "common/secagg/disputes.py",
        "    if promised != shown.self_mask_commitment:\n",
        "    if not promised:\n",
        (_DISPUTES,),
    ),
    Mutation(
        "a hospital does not sign which seed masks its vector",
        "common/secagg/masked_input.py",
        'bound_hash("disputable vector", sealed, self_mask_commitment, ',
        'bound_hash("disputable vector", sealed, ',
        (_DISPUTES,),
    ),
    Mutation(
        "a dispute takes any key for that of a hospital that dropped out",
        "common/secagg/disputes.py",
        "        if public_key(dropped.change_key) != of.change_keys[dropped.hospital]:\n",
        "        if not dropped.change_key:\n",
        (_DISPUTES,),
    ),
    Mutation(
        "a dispute leaves a survivor out",
        "common/secagg/disputes.py",
        "    if names != of.survivors:\n",
        "    if not names:\n",
        (_DISPUTES,),
    ),
    Mutation(
        "a server frames a hospital by a key that it made up",
        "common/secagg/disputes.py",
        "        and is_signed(of.run.roster[opened.hospital], opened.signature, signed_part(of.run, opened))\n",
        "",
        (_DISPUTES,),
    ),
    Mutation(
        "a cheat gets away with another key",
        "common/proved_sums/dispute.py",
        "        if not is_advertised(of, each):\n",
        "        if not each.change_key:\n",
        (_DISPUTES,),
    ),
    Mutation(
        "one key masks counts and change, so that to show one shows both",
        "common/secagg/masking_keys.py",
        "hospital.encode(), segment.encode())",
        "hospital.encode())",
        (_DISPUTES,),
    ),
    Mutation(
        "a cheat may have any weight",
        "common/proved_sums/dispute.py",
        "    if not weights[0] <= rules.weight(centred) <= weights[1]:\n",
        "    if not rules.weight(centred):\n",
        (_DISPUTES,),
    ),
    Mutation(
        "a cheat may send another vector than it committed to",
        "common/proved_sums/dispute.py",
        "    if open_sum(key, rules.proof, centred) != committed:\n",
        "    if not committed:\n",
        (_DISPUTES,),
    ),
    Mutation(
        "a change in a dispute may be of any length",
        "common/proved_sums/dispute.py",
        "    if longest is not None and _square(centred[: rules.parameters]) > longest * longest:\n",
        "    if longest is not None and longest < 0:\n",
        (_DISPUTES,),
    ),
    Mutation(
        "a hospital shows its change of a sum that holds",
        "client/agent.py",
        "        require_fault(rules, shown, place)\n",
        "",
        (f"{_DISPUTE_LIES}::test_a_server_that_claims_a_failure_gets_nothing_and_is_in_every_chain",),
    ),
    Mutation(
        "a change that was shown is not noted",
        "client/agent.py",
        "        self._answered.advance(run_id, round_number, Phase.DISPUTE)\n",
        "",
        (f"{_NAMED}::test_a_dispute_or_a_verdict_is_not_answered_twice",),
    ),
    Mutation(
        "the key of a change outlives its round",
        "client/agent.py",
        "                run.disputable.pop(over).erase()\n",
        "                run.disputable.pop(over)\n",
        (f"{_DISPUTE_LIES}::test_the_key_of_a_change_is_erased_when_the_round_is_over",),
    ),
    Mutation(
        "the key of a change outlives its answer",
        "client/agent.py",
        "            disputed.erase()\n",
        "            pass\n",
        (f"{_DISPUTE_LIES}::test_the_key_of_a_change_is_erased_when_it_has_been_shown",),
    ),
    Mutation(
        "a hospital shows its change where somebody is at fault already",
        "client/agent.py",
        "            if not early_faults(rules, shown):\n",
        "            if rules is not None:\n",
        (f"{_NAMED}::test_a_commitment_that_is_none_is_named_and_nobody_shows_anything",),
    ),
    Mutation(
        "a verdict leaves out what a hospital has shown",
        "client/agent.py",
        "        if disputed.own is not None and disputed.own not in asked.opened:\n",
        "        if disputed.own is not None and asked is None:\n",
        (f"{_DISPUTE_LIES}::test_a_verdict_without_what_a_hospital_has_shown_is_refused_by_it",),
    ),
    Mutation(
        "a hospital trains with one that it has found to cheat",
        "client/agent.py",
        "        self._named.check(run.parameters.run_id, asked.cohort, place)\n",
        "",
        (f"{_NAMED}::test_a_hospital_takes_part_in_no_round_with_a_hospital_that_it_has_named",),
    ),
    Mutation(
        "a verdict that is told late is of other keys than were signed",
        "common/secagg/disputes.py",
        "        and directory_hash(directory) == view.directory_hash\n",
        "",
        (_MISSED,),
    ),
    Mutation(
        "a verdict that is told late is of another cohort than was signed",
        "common/secagg/disputes.py",
        "        and cohort_hash(view.directory_hash, cohort) == view.cohort_hash\n",
        "",
        (_MISSED,),
    ),
    Mutation(
        "a verdict that is told late takes keys that nobody signed",
        "common/secagg/disputes.py",
        "        verify(run, round_number, advertised, place, advertised.hospital)\n",
        "        advertised.hospital  # noqa: B018\n",
        (_MISSED,),
    ),
    Mutation(
        "a verdict that is told late takes views that nobody signed",
        "client/agent.py",
        "        committed_group(run.parameters, view, views, of.survivors, place)\n",
        "",
        (_MISSED,),
    ),
    Mutation(
        "a verdict that is told late is of other terms than were signed",
        "client/agent.py",
        "        if request_hash(request.terms) != view.request_hash:\n",
        "        if not request.terms:\n",
        (_MISSED,),
    ),
    Mutation(
        "a verdict is told late of a sum that nobody has seen fail",
        "client/agent.py",
        "        rules, shown = self._shown(run, of, RoundTerms.decode(request.terms), asked, array, place)\n",
        "        words = np.zeros(0, np.float32) if array is None else array\n"
        "        changes = sum_in(words, len(of.survivors) * of.change_length, run.parameters.dtype, place)\n"
        "        shown = disputes.check(of, asked, changes, place, self._here.apply_masks)\n"
        "        purpose = RoundTerms.decode(request.terms).purpose\n"
        "        rules = rules_of(run.description, run.contributor.layout, purpose)\n",
        (_MISSED,),
    ),
    Mutation(
        "silence is named late, on the server's word",
        "client/agent.py",
        " if fault is not Fault.NOT_OPENED}",
        "}",
        (_MISSED,),
    ),
    Mutation(
        "a cheat is written into the chain as often as a server names it",
        "client/agent.py",
        " if not self._named.knows(run_id, hospital)}",
        "}",
        (_MISSED,),
    ),
    Mutation(
        "nobody is told of a verdict that it missed",
        "server/rounds.py",
        "        self._tell_verdicts(routed.cohort)\n",
        "",
        (_MISSED,),
    ),
    Mutation(
        "everybody is told of a verdict again",
        "server/rounds.py",
        "set(self._run.roster) - told - set(result.named)",
        "set(self._run.roster) - set(result.named)",
        (_MISSED,),
    ),
    Mutation(
        "a run without disputes answers one",
        "client/agent.py",
        'run.parameters.disputes:\n            raise UnknownPhaseError(place, "a change must be',
        'run.parameters:\n            raise UnknownPhaseError(place, "a change must be',
        (f"{_DISPUTE_LIES}::test_a_run_without_disputes_answers_none",),
    ),
    Mutation(
        "a run without disputes takes a verdict",
        "client/agent.py",
        'run.parameters.disputes:\n            raise UnknownPhaseError(place, "a verdict must be told',
        'run.parameters:\n            raise UnknownPhaseError(place, "a verdict must be told',
        (f"{_MISSED}::test_a_run_without_disputes_takes_none",),
    ),
    Mutation(
        "a hospital takes part in disputes that it has not agreed to",
        "client/policy.py",
        "    if not policy.allow_disputes:\n",
        "    if policy is None:\n",
        (f"{_DISPUTE_LIES}::test_a_hospital_that_has_not_agreed_takes_no_part",),
    ),
    Mutation(
        "the server goes on with a hospital that was found to cheat",
        "server/run.py",
        " - self._checkpoint.progress.named.keys()",
        "",
        (f"{_NAMED}::test_a_cheat_with_a_commitment_to_another_vector_is_named",),
    ),
)

MUTATIONS = (
    *_SECAGG_MUTATIONS,
    *_DISPUTE_MUTATIONS,
    *_KEYS_MUTATIONS,
    *_SUM_MUTATIONS,
    *_PRIVACY_MUTATIONS,
    *_EVALUATION_MUTATIONS,
    *_TRAINING_MUTATIONS,
    *_CONTRIBUTION_MUTATIONS,
    *_LEDGER_MUTATIONS,
    *_AGENT_MUTATIONS,
    *_ROSTER_MUTATIONS,
    *_POLICY_MUTATIONS,
    *_SERVER_MUTATIONS,
    *_TASK_AND_MODEL_MUTATIONS,
    *_MEAN_MUTATIONS,
    *_ALONE_MUTATIONS,
    *_RUN_MUTATIONS,
    *_RECEIVED_MUTATIONS,
)
"""All of them; each name is its own."""
