"""Words whose full stop does not end a sentence, and words beside which it does, in the languages of Europe."""

from __future__ import annotations

# Never the end of a sentence: something follows.
ABBREVIATIONS = frozenset(
    # English
    """Mr Mrs Ms Mx Dr Prof Sr Jr St Mt Lt Col Gen Capt Cpt Cmdr Sgt Maj Rev Hon Gov Sen Rep Pres Inc Ltd Co Corp Bros
    vs cf al approx ca c ed eds dept Dept ext Ave Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec
    e.g i.e U.S U.K U.N a.m p.m etc Ph.D B.C A.D viz incl
    """
    # German, Dutch, Scandinavian
    """Nr Nrn Hr Hrn Fr Frl Dipl Ing Mag bzw ggf evtl inkl exkl zzgl vgl Vgl usw usf Std Min Sek Mio Mrd Tsd Str
    Aufl Hrsg geb gest verh Jh Jhd Jht bspw sog allg max mind z.B d.h u.a o.ä i.d.R St.Nr med phil rer nat jur
    dhr mevr drs mw bijv enz evt jl ong resp bl.a f.eks osv kr mln mld
    """
    # French, Spanish, Portuguese, Italian
    """M MM Mme Mmes Mlle Mlles Me Mgr av env apr J.-C Sra Srta Sres Sras Dra Dña Excmo Ud Uds EE.UU
    aprox avda Exmo Ex Sig Sigg Dott Dott.ssa Avv Geom sig ecc
    """
    # Russian, Ukrainian, Polish, Czech
    """г гг в вв ул пр просп пл д кв см ср им т тт тыс млн млрд руб коп др проф акад доц гр
    ul al pl dr inż mgr prof ks tzw tzn np ok wg ww godz zł tys mln mld tj č čp odst str ulice např tzv apod atd
    """.split()
)
# Only with a number behind them: "no. 5", but "He said no. Then he left."
BEFORE_NUMBER = frozenset(
    """no No Nos vol Vol vols p pp ch Ch sec Sec fig Fig figs Figs eq Eq est art Art Abs Abb Tab Kap Bd Bde blz kl tel
    Tel éd chap pág págs núm pag pagg стр рис табл č čp""".split()
)
# These end a sentence where a word follows that begins sentences: "at 5 p.m. The door".
MAY_END = frozenset("a.m p.m etc Inc Ltd Co Corp Bros Jr Sr U.S U.K U.N Ph.D B.C A.D usw usf osv enz ecc".split())
# These end a sentence where a word with a capital follows and a number stands before: "основан в 1147 г. Он".
UNITS = frozenset("г гг в вв руб коп тыс kr zł Std Min Sek kl".split())
# Months of languages that write "5. Mai": there the number does not end the sentence.
MONTHS = frozenset(
    """januar jänner februar feber märz april mai juni juli august september oktober november dezember
    jan feb mär apr jun jul aug sep sept okt nov dez marts mars maj december desember januari februari augusti
    ledna února března dubna května června července srpna září října listopadu prosince
    januára februára marca apríla mája júna júla augusta septembra októbra novembra decembra
    január február március április május június július augusztus szeptember október
    tammikuuta helmikuuta maaliskuuta huhtikuuta toukokuuta kesäkuuta heinäkuuta elokuuta syyskuuta lokakuuta
    marraskuuta joulukuuta stycznia lutego kwietnia maja czerwca lipca sierpnia września października
    grudnia siječnja veljače ožujka travnja svibnja lipnja srpnja kolovoza rujna listopada studenoga prosinca
    januarja februarja aprila junija julija avgusta oktobra jaanuar veebruar märts aprill juuni juuli oktoober detsember
    january february june july october""".split()
)
# Before "2. Weltkrieg": a number with a full stop is an ordinal behind these words.
BEFORE_ORDINAL = frozenset(
    "am im vom zum beim ins der dem den des das die ein einem einer eines zur seit bis und det og på fra til".split()
)
# ... unless a word follows that begins sentences.
BEGINS_SENTENCE = frozenset(
    "Er Sie Es Ich Wir Ihr Das Die Der Dem Den Dann Da Dort Aber Und Oder Auch Doch Danach Heute Man Seit Im In Am "
    "Han Hun Den Det De Vi Og Men Så The It He She We They This That Then There".split()
)
