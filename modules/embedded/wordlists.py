"""Plain word lists the generators draw from: English words and identifiers, most frequent first."""

_WORDS = """
that are this will which string can used value all when list name file object function default method one
given use should only any type data number may instance its module set has have into using but must argument
text new specified current called returns values then other first each path same arguments call line
returned was also error message you code either where does input bytes before names after optional more
tuple passed than command named two model output result widget without field single there attribute key
schema generated whether methods exception source objects event empty defined end their they user files
fields between example like version read been format such provided header int otherwise base strings case
context some mode time request order provider subclass already defaults cannot directory calls response both
types integer most always never contains keyword see server over lines dict being standard instead following
last functions start errors raised get about create parameter part created sequence option matches every
item these stream entry filename just them process found through support until form available based callable
another original during options state parent different next would system custom uses including mapping add
keys core size calling open multiple raises handler need provides address encoding want index added own
contain variable block classes required valid per include package access root items host useful those test
window local program search how element write run once config possible character existing copy change since
because specific encoded position were interface second according override matching takes match via turtle
make check unless what stored out float whose instances currently allow variables prefix namespace shared
allows way means directly even modules binary socket bound under level internal reference abstract metadata
present changes within content child provide supports raw supported handle port generate equal done
signature elements returning still headers callback canonical exactly point back frame pattern library byte
extension operation parse tree extra sets find wrapper display width parsing length expected supplied flag
complete exist node written full here could policy thread needed results your messages answer invalid parser
zero pair lists pydantic included left formatted setting work token contents loop manager wire execution
maximum exists inside arbitrary inputs style cache implement iterable client selected long resource logging
info converted param itself rather entries common behavior examples simple running tag range events usage
reading special actual wrapped place specifies selection boolean nothing future main omitted creating
generic against specify close section relative document build alias protocol transport explicit body tuples
buffer dialog regular similar adapter necessary screen closed timeout caller image times help settings many
take cases actually around adds warning needs dspy well three least language previous tools defines tool
iterator replace allowed func possibly removed typing numbers sent color stack resulting validate decorator
anything parsed button cursor network date several positive query accept makes menu member record syntax
typed writing stop strict pairs real python plus table helper determine creates initial count negative
decoded leading final generator nested entire top members made active requests spec target opened threads
total ignore trailing right passing prompt above imported absolute suitable missing runs status convert
fails beginning plain public outputs trace handling title apply changed remove bool queue separate unique
various runtime flags archive tests below keep statement factory exact exit control includes private applied
ignored normal space docstring intended seconds datetime starting endpoint accepts meaning log usually
structure store update less decimal define avoid memory group off failure handles might requires treated
random occurs indicates height send typ logger builtin accepted described followed scheme concepts models
integers declared task outside widgets depending maps reads replaced compiled side handlers label gives old
static traceback obj lock decode operand numeric appended compiler taken tokens note unknown known concrete
simply font best certain paths script question action print keyed newline digits link blocks wrap silently
view whole look modify starts though filenames built url dataclass perform stdout very down rules depends
commands sequences carries records executed points signal parts column overrides sign email sorted charset
details correct mailbox wait shape registry comments having ensure temporary mock chain container appear
validator related checked callbacks foo component building replaces aliases attempt basic live recent
takefocus mark too rule represent updated contained array later skip delete docs proxy waiting nodes
decorated sure failed limit insert report year assigned words resolved ready property location codec split
indicate mean canvas something loader together symbol identical offset modified across yet derived printed
testing setup greater visible compat loaded normally coroutine dialect require creation generally typically
shell virtual arg applies blank formats usable spaces chunk exponent requested env addition able install
literal encode logic gets forward save longer compare works extended short processes along reported extract
compile load fallback safe history native readable installed pathname pickle children row word working
probably providers connect condition doctest turn received candidate grammar master providing controls
complex checks subset writes replacing password bar validated repr produce invoked holds displayed payload
frozen better score sync release reason much inner further kind accessed execute fully stderr defining sends
platform cause tab engine know checking become session raising ends reserved debugging locale month our
listed dicts addresses computed indent algorithm fixed giving remaining training assumed show enable becomes
register chat thing legacy had globals describe follow failures keeps scope step domain warnings large wraps
terminal really mouse processed page job direction follows boundary door tabs prints saved separated fail
cancelled fragment unicode ordinary reports external day prevent counts minimum mypy automatic naming
responses platforms properly effect reset predictor handled embedded sample debugger direct batch resources
fetch searched recursive precision did lower select template fresh pipe general enum decoding versions clear
expanded displays places unit occur drawing features executing stays chunks triggered patterns frames
libraries pure quoted yields compute plugin refused appears comment proper higher now deleted cached
serialize wrapping lineno give separator worker cancel binding sandbox invoke openai metric partial tar iff
semantics bytecode router answers detailed bit mal doing filter remain four schemas happens users bits
editor buffered looking issues attached move reader opening shown dot login nor summary locals preset
imports allowing browser passes media attempts tags finished bare suffix var produced converts timezone hold
packages ordered map newly disabled receive feature append hint box relief delay mapped importing service
produces making whenever loading hash tasks audio symbolic formatter subtype rest readline resp theme chars
preserves retrieved week again larger disk adding updates cloud ones performed desired upon nearest
timestamp forms come invokes whatever moved bitmap priority anchor compound bind servers constants things
consists stdlib kept spelling snapshot gzip absent cookie operands relevant iteration dummy construct
counter unlike copied falls trying due looks obtained dir small therefore latter cell commonly leave marked
owns earlier truncated backport hook lookup neither prior minimal levels logical seen dotted remote filters
meant multipart extracted reverse fullname comparing finite signals cookies scheduled behaviour upper
yielding changing keywords good hostname exclude force null however connected closing configure columns
indicated auto often tries disable free evaluated inherited tables recursion shows describes infinite
utility issue retry limited purpose union username consider framework managed parsers scripts account few
carry mostly routine angle focus remains switch parallel copies goes clean systems pool strictly inherit
thus releases meth rung indices ending generates accessing sending started timer reply designed newlines
likely important sources problem turns article enables ever web doc belongs rejected double compact family
parses backward selects writable hard selector quote windows pixel programs polygon put fun performs origin
faster square shim inherits refer far says broken fit magic merged pointer discarded padding supplies
console mechanism resolve exits dynamic symbols scores rounded escape backwards pid verbatim pointing sort
prompts alpha holding expressed severity leaf watcher rounding groups track applying bottom cleanup fact
wrong wants contract thinking who comes act loops iterate emitted buffers refers assumes regex keeping
leaving database localhost deep primitive depth streaming skipped taking pos symlinks symlink slow affect
approach saves marks choose hidden tells enough chosen moves feedback red amount smaller middle older
backend auth variant wins states enabled share builds route compared anywhere entered decision caching zip
hex combined detected identify home optimized potential proposed executes blocking assume matched timed came
aware shallow care struct prevents mappings minus why pretty undefined combining retain lint json underline
transfer protocols hierarchy fall buttons ask viewer initially student ways progress images graphics among
hints stops fill pen speed idea deal init high pending dispatch effective let safely ids asyncio owner suite
dropped presence human stay ignoring decoder prepare opaque machine device differ stripped bases expects
differs expect ref submodule unittest debug quiet bindings judgment colors onto bad layer yielded copying
budget defects identity paragraph builder writer slice compares removes attrs perhaps soon pipeline supply
stripping wiki big ignores unions combine params forbid similarly printing emits producing escapes breaks
stdin channel knows serves formal occurred tested verbose trainset dataset operating mirror choice acts
schemes pixels corner blue recorded markers lives slot reaches alone causes flow hello linear leaves labels
pickled head links pinned inspect tooltip documents cut retrieve declares alternate searching placed tried
packing icon edit capture portion away portable acquired notified slightly checker fixers nicer hardware
indexes attempted shapes reached finish silent adapters vars sense terms entity storing inserted consumed
stores weekday days longest others reduced inferred dump qualified warn quotes escaped circular floats front
inclusion streams derive preferred fixer preceding timedelta beyond depend optimizer attach sentence subject
geometry popup grid affects distance queries movement say singleton heading modes restore asks major
envelope stated customize joined equality unset digest inline reasons patch floating hit lowercase evaluate
profile listing region doctor invoking caught choices encodes etc threshold secret idle sockets guess
retained flush ints usual assuming allocated vertical resolver mentioned begin detect begins finder
correctly getting runner released semaphore textual matter expose sigma codes asked refusal exceeds fix tail
constant prefixes happen avoids steps lets fast reduce hosts edge logs incoming alongside weight distinct
hand duplicate folding remainder idlelib belong purposes exclusive round fold tkinter visual dependent bunch
rendered diff segments indented notebook adjusted drawn rows highest turtles legal units detail binds
reflect third loads limits removal sampling marker preserved citation caches translate almost security rate
drive resolving refresh lazy handshake rely reused opens owned sections sum tell attr showing suppress
please appeared alive receipted spellings codecs encoder highlight sibling overview measured packed scale
closest overlap figure netmask garbage adapted strategy smallest desc favor annotated video knowledge
populated success assistant cooked phrase digit reliable catalog drop expired amended malformed literals
exec tokenize flexible appends strip removing easier slash enforce omit trusted rebuild excluded behaves
char immutable linesep observed stuff buffering counted clients preceded zone divide pred learning capital
feed pressing aspects prefixed val serve animation reduces vector actions tracing undo resolves minor
implicit twice computing although iterables signs flushing captured mutable lib channels helpers polling
unchanged sys demos tracking terminate pick decide addr inference unable maybe closes gateway callables
behind join treat ensures satisfy delta max padx pady justify rectangle problems solve looked physical
manages optimize blocked conform accepting got sentinel mocks ordering division barrier threading shutdown
rewrites colon ticket guessed checkers reach turned printable zeros linker toggle receiving primary retries
exposes reporting guidance compiles going stable consume toplevel locks bin restores dots targets cleared
pip filled effects enclosed kwarg specifier excluding encodings predicate fetched compliant ordinal driver
ascii world newer area mixed selecting recently driven clicked num numerical clicking circle respect triple
reject surfaces manifest cost bounds lost towards guide hashing ensuring caused patched assign slashes
litellm loopback machinery locked deferred forwarded segment surface retains obtain shall contexts parents
subparts adapt mainly analysis backslash series datagram splits efficient harness nonzero blanks globalns
role opener lead implied reuse basis managers slider gridded closer orient outer callers fixture secure
failing emit suffixes primarily helpful verify finalizer requiring collected sugar loggers yes evaluates
simplest helps rollover killed passages infinity transient routes exposing texts behave natural receives
matters hashable preserve punycode easy latest tied prepended typical operators tzinfo east consult weak
hence aka former scrollbar editing cpython mixin press pages sizes draw located outline bounding collect
alter equals green rendering facade declare kinds composed quite citations trigger modifying metaclass
unrelated handy futures folder appending frequency samples pad debugged awaited alphabet shorthand listener
atomic refuses foreign universal sees routing knobs policies notation infer delimiter uniformly pointed
evidence abcd dev rungs surfaced developer affected mutate unquoted bytearray detached finding verified
timing outcome multiline atom colormap propagate waits walk extend cycle octets five pins finders importlib
linking improve valset seed referring tracked mailcap effort half bodies fileobj variants tagged usr
download repeated thereof fractions guarantee bug engines notes shuts macro mail retrieval enclosing
entirely operator sometimes maintain validates cycles restart positions quota assembled fragments billed
billing remembers tokenizer piece uri elem feeding decorate coding substring overhead processor insertion
letter operate pickling domains dedicated dumped locations echo assertion defect elsewhere agent viewing
expand hour inverse dates calendar decides popular treatment overflow retriever render branch manage capable
easily scrolled pressed fillcolor resets jump interior matrix enter dialects seeking speaks decodes low exc
breaking solely endings wrappers excludes anthropic retrieves completes classic numbering insofar delivery
unusable seek brackets padded light compilers consulted proxies comma timeouts entities clock catch
launching managing traces monitor stopping carrying shortest cover scoring meets cuts opcode analogous held
daemon hatch plugins near lazily advanced retaining coerced deleting implies leftmost epoch upload redirects
interval design filtered exposed wheel menus obsolete spinbox mask triples pane course delimited offline app
nesting marking wish sorting shortcut nonempty loaders recognize seem htest awaitable bounded stat pyc
improved unpacked sub software partially converter linked honours author lowest calculate pax mtime wake
lookups acquire fault exports sidebar sensitive abort macros zipfile addressed arriving rejects consumer
localns backup routines notion deviation median power relocated race coverage shorten filtering wildcard
lots numpy spam play click bpnumber signaling globs delegates collector material carried dropping routable
blob cross clears discard capturing lang someone think likewise compress pops counting unpack subtract
project globally rebuilt baz eliminate joining folded inserts splitting shorter involved readonly minute
west naive gather fits period git backed listbox adjust quickly dragging advantage center cells wide
maintains arrays endian little degrees enhanced stretched relies rotate covered filling listen mainloop
issued drawings white colormode transform sandboxed reusable quirks locally upstream forces arranges apart
bypass rollout temp altered unpickle exiting peer augment sound incorrect facility corpus nature signing
mirrors opposed metavar const dest prog launch overall reward analyze predict clearing shut hide pydoc
increases pandas criteria advisory archiving uid pack querying past collapsed abc yourself said receipt
covers walked ambiguous refuse twin failobj iterated seekable rightmost lone uploads poll deadline interpret
arrives profiler oldest listening grab vendor slaves vice encloses increment sash commas odd junk chains
discuss strong nbytes resume bitwise semantic permanent hooks dialogs duration super offers existence trust
bundled emitting inclusive outermost dumb gathered typevars warns replay finds exhausted integral fills
redefine lacks site passwd whereas parens submitted pty bearer keyfile benefit layout renamed category lose
merge unbounded proposer profiles modifiers automaton diagram composite average improves achieved maxsize
ast heap largest unified rational graph emulate destroy beta inexact subnormal prec logarithm inventing
offending manner license offsets attrib subtree inserting pre occurring builders nicely superset refs export
prefer achieve namely purely mod familiar worse datatype fonts pyshell deals installs tabwidth clipboard
expanding ctext abs derives city gui late seq tabbed repeat arranged arrow subwidget fancy sits divided
choosing modifies pathnames indicator edited widest nearly developed moment revised north arc extent
pencolor yellow became recording keyboard travel anyway forwards treats knob ability advancing worth whence
travels estimate restrict flushed aborted hyphens consist modulo isolated tricky trick mbox deletion
updating phase fed immediate queues owning funcname deletes directs secrets views detection rationale ports
lexical sax augmented consumes guard monitored jobs atexit awakened onwards tower concise devset gap fitted
fork gid involve pop opcodes memo proceed mutated generics activity groq keyless ollama refreshed planning
answered bracket eggs imply wires extracts rides unix expiry grows storage redirect supposed presented
saving supplying grouped proactor holder adhere stacking claim unmapped reflected sticky span remember
baseline expires quotation claims exp operates respond allocate recurse newest ipaddress grouping shortened
ground enumerate truth ideas formed uppercase reachable speaking intercept repeats discovery prepared
lifetime labeled scanned predicted ran textview invariant medium hue lightness localtime exceed recovery
unbound suites builddate compiling clearly iter prepend sparse lzma hardlink flattened frozenset unlocked
age scroll nice inject inspired browsers rich workers res normalize modal scrolling spawned transmit
narrower jumps omits executor overload exported bugs recipient helo certfile cloned encrypted themes extras
deltas promise adaptive satisfied precise natively uniquely variance covariant throws deemed statespec
somewhat traversal adjacent rotated reopen scenarios enters snake intervals traffic years noise seeing seems
spawning hack submodel slots skill importers dtext invocant snippet redundant booleans expensive activate
six diffs resumes mro getattr varkw varargs ntree nthree ntwo linejunk utilizes bcde thousands builtins
passage spanning inf skips fetches proto traps trapped brief examine afraid telnet midst delegate colorizer
toggled guarded ended shipped drains catches eval auxiliary qname weeks gain seven contrast repeating prime
watch flips networks explain foobar refactor leads hinting families fine overwrite discover sre extends venv
manually squeezed becoming editwin leap ratio unary multiply sep datetimes happened invisible concerned
finalized attaches revision anonymous tix dropdown entering hlist filelist dirlist presents bring simplify
resize panes placement sublist mimics startup early rotates commented scalar product vectors angles
clockwise dist opposite vec pensize col black undone learn stamp align fraction admits internals bridged
locating mistake chaining extremely switches probe bill price grow roughly migration sessions enhance merges
schedule subpath despite hashlib notify hang queued rewind blocksize stereo mono disabling framed central
mount archs tunnel api unparsed ignorable rare informs demo conflicts populate nargs bufsize rooted maintype
pools confined killing launched offered markdown tooltips browse reload searches summaries topic syscall
decisions gaps reusing picked midpoints beats folds strongest resembles recreated lot gztar bztar xztar
archives queried modern illegal confusing mandatory enc xaf xea obvious pickler worry pull cython deepseek
touches azure fake principal shares routed uuencoded requote permitted varies falling heuristic vary defers
writeable functools admit cleaned sleep intact notice retired braces feel caution displayof ancestors
minsize photo aspect passive min sides stick offvalue radio redo ranges gamma factor scan dragto computes
dimension spawn precede precedes won ten inlined evolve pow post solves manual initargs captures stating
basically multicast octet payloads recall rarely batches cleans succeeds salt hosted ownership vet commit
refreshes topics narrow quick deciding glob branches feasible dyld gepa lifecycle teacher quotechar referred
ctypes preview arrive cancels pgen injection conflict distutils copyright forget locking borrowed offer
ellipsis devtools configs inplace thereto ext chunksize aliased linkage wildcards mocked powerful greatest
toward ratios life zlib weights signed unsigned tarinfo iterators waiter wakes trip idx acquires gold
embedding desirable facts intrinsic bundle decrement obviously packet fastest recursing suspended chance
interact slave environ okay technique difficult practical meanings opts letters imap throw slower shortcuts
recommend perfect aifc sells refusals logprobs plist walks connects aid skipping coercion coerces eagerly
judgments dial spends tier injects authority alert overloads recreate periods themed expecting styles
themename restored belonging van rotating deliver preparing deno ambient pooling subscript imitate matcher
establish somewhere unfolded questions numerator sized measure density opt sharing posix solution untrusted
mismatch interfere flex coupled handed rename wanted besides telling refolded multiturn writers subtest
proposal oversized propose reflects eager logged areas causing datefmt eol spirit unquoting qcontent atext
attrtext utilities inspected vendored tracker caveat stage sake netloc draft losing uniform visit visitor
examined leftover sensible claimed confuse unread dirs greedy unlink stale accesses ndiff wink published
synch keepends intraline pprint ore charjunk emu nemu tolines fromlines markup shelf summarize aliasing
disables stages push gemini finishes collapse paris uuid simulates simpler sock card ceiling allowlist
symmetry mkstemp doctests embedder referent keyset traced limiting dividend underflow testmod recwarn till
calltip indexing paren exporting shebang
"""
_IDENTIFIERS = """
str name value isinstance len data key dict int type line path result list obj msg other text sys node bool
request filename codecs context tuple file object errors code field getattr input item print message schema
arg exc source pos provider func token encoding part event default url index config hasattr mode prefix
bytes module property parts info float state core_schema lines set super model size parser classmethod base
results response payload timeout action ctx host headers spec lineno val root resp logger sock range end
fields values frame out repr body parent signature start entry flags options cmd src level attr stream
params buf warnings master res kind field_name cnf option err dir extra offset tag raw idx label status
origin count fullname doc first annotation items dspy target handler method error output port string indent
policy conn loop title names new socket section param width pattern codec field_info command match opt elem
next ans kwds time decoding_table version address attrs desc typ map env test row group max sorted enumerate
json_schema ext top open inspect frozen content events child slots staticmethod final limit help delta
callback write header messages proto fut tarinfo protocol rest frozenset strict compat types decode head
chunk min charset sep stacklevel dataclass encode last issubclass namespace json datetime instance length
function any settings year format init handle program record outputs cookie side example opts waiter column
alias usage tail category pid transport globals inputs setattr threading trainset keys member dst sig req
suffix char logging call by_alias block package pred tool loader choice syms encoding_table credential
definition chars description stdout cache bases log metadata environ verbose stderr user collections scheme
fileobj ref seq struct output_dir element parameters fmt dispatch all domain dest debug chunks mod
subprocess util score fill padx partial flag reader vars server buffer klass student found files family
modname file_id prompt addr parsed exception main uri get_args streamreader streamwriter iter locals
base_url future incrementalencoder incrementaldecoder callable task media_type inner zip continuation
rawdata exc_info where note pathname month query col stop default_factory abstractmethod reply objects
bytearray traceback var stack valset stmt adaptations candidate zinfo required pady num extensions
annotated_types entries replace ast words system exclude signal predictor current proxy bufsize contents
resolution seen dirname writer kw_only expr functools num_threads missing word ctypes escape serde second
memo reason choices fname pydantic exceptions iterable widget validator tree urllib stat release adapters
filter field_schema pat loc math lock dat sign mbc provider_code dry_run content_type field_type role day
date ord msg_template expected process localns meta detail globalns hint sequence access screen nodes exp
hash defaults adapter overload skip metric scores seconds module_name linesep selector sticky now enum_class
tool_calls errno children digits lnum def_op namespaces stdin left menu option_string newline importlib xml
ret cast timedelta paths asyncio labels constraint emit verbosity executable editwin number prog feature
copy ref_template dirs maxsize height anchor boundary trace config_wrapper mapping tools dataclasses arcname
include typevars_map color raiseit formatter done teacher total job executor max_length password typing
nextchar coro part_index annotations fallback allow_empty globs sum get_origin email input_value font
history ssl random whence canonical script force right var_name append nargs thread ns_resolver
server_hostname ctype flist delim divmod train_kwargs stack_before stack_after file_path output_filename
nbytes api_key answer pipe profile depth demos definitions alpha provider_data tokens blocksize variable
prediction passwd attribute select members quote model_name what methodname tests encoded dist asked
arguments authkey env_keys basename abs lm_kwargs pwd qname ident sub image onerror ann_name mod_name
include_dirs this remainder position outcome return_type trial_logs libraries reversed exclude_unset order
sym factory platform original dir_fd dataset stripped mock exit filenames memoryview registry source_type
api expand check base_dir queue heap sources extra_postargs library_dirs json_schema_extra max_digits pair
trajectory tokenize examples follow_symlinks got wrapper spec_set exc_type min_length call_id shell pairs
expires seed allowance leader request_id warn mask link changes itertools ssl_shutdown_timeout multiple_of
delay batch_id targetpath engine decimal_places abc canvas credentials_path low want recursive console_url
scale archive deprecated tzinfo pytree encoding_map thing trial_num lib hour tool_call metavar add
destroy_physically interpreter variables complete machine tarfile primary serializer existing errmsg
builtins instructions lang model_type supports models oid type_name proc fromlist clock fragment
protocol_factory blocks adapt hostname separator step rng safe errwrite decorators macros fixer known_models
keyword update cursor compresslevel close register resource token_type attr_name old outfile fixer_base
exclude_defaults exclude_none tkinter diff borderwidth allow_inf_nan cache_control endpoint indents
predicate remaining max_errors listener callers ann card_number copied operator maxlen owner unmapped audio
allowed callbacks best_program indices http bits drv runtime_library_dirs mime op_result coeff run
inner_schema push after fun temperature lhs decoder deadline override wrapped safe_repr ld_args getcontext
groups template info_arg bound wait cte status_body progress methods zlib buffering finder handlers
extra_preargs ref_prefix theme metaclass cached deepcopy cache_cfg session high chr option_strings argv
cause html scope returncode ttl_seconds instruction components total_sent netloc model_name_map tags
default_code shutil before selectors effort devset best anyobject named prop caps clone matches wrap reverse
modules optimize inst input_args method_name enc fold root_dir turtle param_name mtime linecache classes
unit endtime discriminator properties realm minutes binascii server_side limit_value prev demo initializer
chain tok cls_name etype winreg browser suite save classdict dec encoder argument timezone transp fetched
finish_reason backend subpattern aliases lookup errcode triplet fn_name item_list date_time deep connection
round usage_data lowered curdir proxies argspec probabilities criteria passages gid read_timeout timer rung
typing_objects demo_candidates readline formatted chunksize optionflags compiler symbol minute serialization
messagebox validators curses citation frames video_id litellm long newurl pool certfile read mailbox endpos
event_name exc_value locale deque marker allow_pickle startline directory decoding_map funcname auth filters
cfg stashed pax_headers binding prec rounding providers doctype attributes infile getter parse_float subtype
tstr create shape imp enum class_name outer comptype padding meth ispkg caller hints repl ready texts setup
keyfile show_caches get_cfws contextlib lst elt angle fields_set weakref futures typed breakpoint_index when
arg_strings candidates cont auto batch shift exc_details weights tool_result_media mark iterator plural
fileno auth_modes calls wraps subclass sublist osname rule original_schema num_trials success actual endrec
known_paths caching cls_ref pre by_name sts pickle window sslcontext initial dc_cls keywords mro rep segment
opener fds interval batch_size places tool_result_name strict_tools exposed background credential_hint regex
qnames stuff hours builder localname allowed_schemes private_attributes typing_extensions argparse days
interpreter_factory unknown new_node closed sequences location authority train_data lno validation_alias
ip_str failed quiet cfile accumulator lenient_issubclass ensure_ascii weight output_fields arg_types
sysconfig full_path comp base_name decoded num_retries refresh explicit opcode conf serialization_alias
grouping alts error_message exponent adaptive auth_path check_fields weekday eval complex when_used
typevar_values max_iters arena exec item_type logprobs dialect getopt how drive unquote setting parents
provide_traceback predict ann_type conv pathlib allow_none end_lineno verify infos use_colors runner
features source_name pp_opts usage_payload compile microseconds steps to_dict displayof resolved relief
reduction plist expires_at digest teacher_settings trial kept funcs why use_builtin_types docstring
candidate_program completion states max_value ext_name pending table format_dict field_names constants
account_id wire images repeat fcntl validate literal heading failure_score suffixed_err exitcode
connect_timeout return_schema prefixlen timestamp funcopy records source_address mime_type numerator edit
script_name dfa operation out_file generation_config comment remove optimization msvcrt final_outputs join
align custom_types subdir nframes extra_args evaluate modifier const start_index arg_string prompt_model
plain initargs patterns get macro errread selected decorator best_score work_item precision extended
use_alias new_args trace_data cache_id theyear generated tracers username process_obj tool_call_results
first_line backlog varargs nested applied summary cur_line contextmanager client_address unpack tup importer
consumed dump min_value argval min_items mime_version markers attributes_set chunk_left ahi bhi
schema_overrides retry_after found_dict entity keepends parent_namespace allow_nan rows suffixes fws static
manifest unsafe_hash short max_labeled_demos seps cwd realname value_exclude value_include converted colors
pack grp type_param filepath include_hidden numbers encoded_data exe alo blo mac aname tempfile typename
qualname separators defect commands max_size view forward ttype varkw columnspan requests new_file from_line
altsep compiler_so nexttok language columns ignore is_dir train_size tmp enum_type max_len new_params
source_path file_name style readable todo reflective_dataset modulename declstartpos shelf source_lines
rargs spec_file group_key env_dir clear maintype microsecond cmd_name inp defaultdict outline new_instance
namedtuple percent member_name tmsg here normalized obtype write_timeout binary user_function major cbname
hex core_config frame_summary ip_int parent_path build class_vars origin_type digit export_symbols maxlevels
sections new_exc comma curline erhn mod_spec alias_priority add_flags norm_encoding dotplace nested_models
schema_generator self_type maxlinelen amt strip_whitespace img speed budget output_tokens purpose path_id
threshold container attempt pydoc tasks max_count alt virtual func_name exclude_if constraints schema_ref
minibatch score_data adapter_name ilabel bytecode_path path_parts arg_name keysym target_lang autospec
invalidation_mode master_fd argrepr opt_name obs_local_part rtype step_idx newl modulo output_field_names
fid unicodedata elements user_options sizeof default_port model_config raise_errors sort_keys exists given
txt tools_wire arg_desc failobj magic delattr completions train_data_format orjson topic uid hashlib utils
button lexer core_metadata visited log_dir positions strategy optimizer console sample dot ctx_type
audio_format answers tld controller local_addr tool_name thinking_format overrides cookies pkg_name
parse_tree proxyhost fqname discriminator_value obj_names block_where defs_ref pattern_re did allow_reuse
package_dir skipkeys terminator trans raw_event counts parts_to_text auth_scheme class_path with_callbacks
expon path_list textwrap exist_ok fdst compress module_globals markobject modes reduce statement rungs
validate_default normalize candidate_programs source_bytes sys_version started modpath hlist error_proto
deop rpcclt header_bytes case kws startpos pdict del_flags src_name clients bestsize in_file typeid dft
guidance details test_case minidom boolean_options plen getattr_migration header_name buffer_size json_loads
tabwidth cid off dtstr week visible dummy input_tokens written rate amount asynchronous folder unixfrom
common comps new_name actions inserts tempdir xrefs merged processes report fsrc dirpath authorization lname
chars_to_skip bias home typed_dict_cls type_hints effective_max_errors contstr path_sep substmt
resolved_type_args start_dir cursel listbox machinery build_temp sectname props input_keys secure blocking
file_input config_type part_type questions maxc xbar fullurl route keydefs compile_opts flat_models pen
mainloop temp local zone frac instr config_dict margin cur_len client max_tokens prepare finish concurrent
gen sampwidth cond disp pardir priority bad classname array present file_size credentials type_params
sentinel dec_flags hdrs max_workers interp empty close_fds err_msg creds door_key ser_schema bstring pkg
spos obj_type alias_generator created_model min_size acw condition discriminator_key cmdline pointer
eventname inqueue poll_every wire_request prompts standard data_format redirect denominator max_items
invocation sub_schema compress_type iscased bestj monetary newfile time_str strip_dir input_opt pdb fracpart
opt_str current_handler json_ref schema_or_field expected_regex parse glob curr annotated_type
pending_inputs spawn posixpath btn entrypath namedtuple_cls display_as_type reset format_config err_type
credential_policy merged_params compression grammar topdown stops nchannels pieces display_table declared
pprint eof daemon homecls metric_name callback_metadata stream_listeners extension whole raw_annotations
bracketing sort return_when minor startupinfo maybe_schema replace_types num_candidates parsed_result pred_i
net min_len yielded contline ind typecode_or_type is_package value_type new_field newsel data_list
normalized_items valid optname use_datetime send longopts libfile crc warning sec req_host address_list
gepa_result domain_literal comments max_num_fields refresh_token metadata_kwargs centdir object_setattr
charmap fullpath output_file reductor status_message entities short_empty_elements skip_on_failure shim
gmtoff tracer packages tabsize custom_error_type field_definitions union_format call_default_factory
object_hook object_pairs_hook child_w child_r format_error_for_lm firstweekday date_string lastline endchar
transports fixed highlightthickness radius tool_choice validate_by_alias citations new_path digestmod acc
userhome cc_args text_frame positionals explicit_arg formats epilogue good notdone eol tried parameter
field_key challenge timings pydantic_js_extra metric_threshold textvariable scandir namespace_info workers
depends dironly in_dict linkname dfile possibilities socktype configured vstring max_chars feedback
developer_role reasoning_format instruction_role max_tokens_field stream_usage branches fsum unwrap
expected_pid brand newdata input_schema lineterm themonth eval_str tolist target_desc message_spec bnum
trans_idx fix_imports unmeasured adj items_schema subpatternappend condname snake attr_list expat fraction
julian link_next python_schema duplex tool_names break_reason copier abspath retval originals created_at
return_annotation merged_kwargs signum myseq effective display_progress underline page docloc writing
trailing_dot lzma question cleanup skip_chars requested exact line_buffering mid pbar secret der
pydantic_js_updates data_dict exitpriority lookup_lines epos delims value_lower audio_media_type text_parts
arcs path_separators portions is_settings has_alias_generator body_consumed type_map fetch build_info objid
concat_message effect exc_tb autoraise stripdir opmap outqueue debuglevel sel retention exec_pairs mon
newpath teachers enum_member first_enum sigma ptext to_encode databricks_token device quote_types init_var
childpos input_base_dir run_name href jrel_op min_version months skip_bound_arg fromlines tolines btags
flaglist cmd_class lib_opts ldflags var_kwargs example_images fobj toc_entry invalid marked rotdig
modify_schema argument_schema differing result_item default_namespace sio slice locale_time notation
module_file checked convert_path link_prev maxsplit from_attributes parse_constant is_errors
traceback_frames symlinks rmenu sysid base_events ssl_protocol tagname tri api_family request_judgments
create_model digest_cons erf esc vbar nargs_pattern attempts get_platform topics decl current_process
key_type topfd sent zipfile start_pos placeholder_key max_connections brck_index subpart avail resource_name
model_id tid tenant colno capture_locals rounds colwidth coroutines toknum skipinitialspace iteration
max_output_chars isdst tool_result source_hash is_root_model chunk_message dest_path filemode rawval
host_type cafile legacy linestarts schema_type test_size rendered extn components_to_update ignore_discard
ignore_expires dirlist addr_spec main_path pred_ind enumeration member_names member_type interesting
encode_chunked hit headersonly impl fxn required_length msg_id disp_header keylist operator_precedence
attr_overrides lm_cache_dict backup zipinfo fixes hascased native which name_size besti localename
output_type tz_str intpart sourceget attrib pubid type_ref fields_values overlapped experimental macosx dim
myoff otoff xmlreader attrname typeddict_cls canvwidth canvheight stitem to_jsonable_python base_path
content_parts item_index linenum enable_memory_cache input_data line_pos framerate return_value anyio
require leftover optuna max_rounds devnull change bucket justify forceload shadowed skipped type_annotation
rules gzip posix copy_function archive_name zip_filename new_pos key_stem intersect region keep_blank_values
api_keys wire_model stats funcid newtag universal_newlines pem js_modify_function path_type total_eval_calls
max_depth compact ips recall byteorder col_offset fields_with_values lm_response parse_color_value evaluated
updated_mapping new_attrs numeric_owner generator coroutine waittime prependdir takefocus manager
error_callback cdll ssl_context use_subprocess media_path alen covariant subargs parallel_tool_calls
current_ast_node mod_type display_name format_spec den seen_models failures win cand alogger units
group_list query_text query_vector fail_fast inspected_ann fpin cal prefix_skip wrapper_function defproperty
literals pkgdir date_str takes_args takes_kwargs data_lines utcoff aslist generated_request built list_index
bigl valname cls_var_name work_id exit_pid negative_opt host_required custom_error_message round_trip
serialize_as_any rebuild_ns validated_data counter last_charset input_charset last_line quotetabs goto rgb
has_tool_call cache_read_tokens connect upload_body check_policy auth_header model_info validate_on_init
field_specifiers subp name_leaf pad direction result_path cflags elts buflen extras launch_kwargs
charbuffertype vals modpkgs fdict getdoc stringprep refused input_fields ignore_errors used scandir_it
dirnames trailers is_async cutoff rawtext requote defects skip_bytes statistics wait_handle ver rel
values_type unpack_type view_data_batch_size last_end ground_truth get_ident salt inpackage fullmodule
flavour frame_background maybe tokval delimiters plugin_config http_version assigned_value type_args hand
is_tls aborted dotdict identifier top_level_dir file_data new_callable unsafe self_name exc_val codings nti
statres cut parity maxtasksperchild acct cursect local_part shortopts optarg co_positions hdr remote_addr
debug_log changed is_error response_format reflection_lm used_names syntaxerr discard metacls mss capath cur
urltype check_hostname caller_modules error_case uly ulx sinfo to_upper to_lower decimal as_ew_allowed atom
angle_addr mailbox_list pname callback_context filters_json comment_header expires_in prefixes schema_part
union_mode attempt_rebuild name_op file_py prompt_cache sitedir tokenizer vcvarsall plat_name output_libname
image_map expression finished header_size show_text method_to_typeid segment_name usage_raw tzoffset
system_breakpoint keyset_name abcs result_sign opa opb exc_msg newnode sub_agent_rules core_ref
core_mode_ref chat sourcematch condgroup env_val seq_type_name get_name file_or_filename each_item dec_info
calendar standalone src_dir preserve_mode newcount other_count hosts resolved_bases private term
current_column tearoff disposition timetuple mytz rem endline search_path csock protocols onkey down poly
full split cache_write_tokens codes has_tool iso_utc var_kw var_kw_name uuid text_width contextvars tmp_file
starts marshal fmant fnmatch altchars sysroot archs conflict_handler strings subparts preamble rpc atexit
iomenu is_cli thisclass result_df typecode extract_dir official_train last_key signed stackslice picklecode
json_encoders is_argument aclose startatindex get_time who subject var_kwargs_schema def_schema
inlinable_def_ref extras_schema required_keys chosen_params basic_instruction prefixlen_diff octets hextets
base_model child_parts cloudpickle frame_buttons snapshot part_to_dict parenlev endmatch banner delimiter
schemas interrupt end_audio source_mtime new_root opt_level is_required has_dynamic_alias forbid_extra
support private_attr dataclass_field inner_type tls wait_for adapter_for_provider linkage fileout patch
target_path preset levels ldshared accum dict_type update_not_none request_body ddir timeout_handle
coro_or_future slave_fd rfds getvar exception_entries reuse_port pyshell def_mod dfn deno_executable
raw_output bindseq builtin_tools domain_specified req_port subname unexpected last_values pseudo_member
libpaths urlparse delete pidfd dct import_path conversion unique_items unstructured bare_quoted_string
phrase message_id attrtext mime_parameters extpos eval_seed query_type rf_list strict_parsing quote_via box
compare markerid reward trace_instance fixer_names class_validators withyear itoken managed selection
gen_schema roots game fromfiledate tofiledate to_line answers_list source_filenames output_opt try_names
get_validators gtpos attrvalue doctests_only match_set schema_to_update dstoff std_offset tokenized
node_prefix thinking cnt_t leftdigits dup evalue res_json extraglobs variables_info results_best thought
inline pp_args test_item ids partialmethod iso_year tzname cmdlist build_dir heapq list_call cached_property
check_circular parse_int parent_r ensure_signature binpath confirm orig cmd_obj bisect form is_typeddict
undo secrets incomplete total_tokens readiness parser_name programs dataclass_transform leaf mcls
destination colon key_list debugging pow study pathlen genericpath result_drive newvalue bare localedir
maxheaderlen spelling routed capture gui_adap_oid fail tty pkgutil enabled evidence ignored_names orig_st
dis object_provider difflib outfiles reading have sleep proactor getint_event err_close_fds errpipe_write
token_file client_id extra_items items_type keys_schema var_args_schema has_default variadic_item_index
minibatch_size format_failure_score demo_set_i data_size divisor anchors left_anchor right_anchor octet_str
address_equal reasoning_efforts stem pyver threads compile_args main_request size_or_initializer idstring
turn turn_complete arg_names sym_node first_dec pyversion cls_annotations ca_bundle user_agent body_length
formatters hdlr sort_dicts builddate uname start_identifier last_token modified_request inplace numbytes
outq environment elements_added strip_metadata normalize_text new_text
"""

WORDS: tuple[str, ...] = tuple(_WORDS.split())
"""Common English words of technical prose, 3 to 9 letters."""

IDENTIFIERS: tuple[str, ...] = tuple(_IDENTIFIERS.split())
"""Variable and parameter names, for field names."""
